"""Threats measured against every protocol and form: the rows of the matrix."""
