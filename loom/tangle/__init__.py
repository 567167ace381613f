"""Tangle: the cells of the chapters become the modules of the package."""
