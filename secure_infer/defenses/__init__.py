"""Defenses against what encryption does not hide; torch and numpy alone, on CPU or GPU."""
