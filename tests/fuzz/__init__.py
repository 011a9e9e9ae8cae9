"""Fuzz targets for whatever arrives from a wire or a disk."""
