"""Sync: what was edited in a module goes back into the cell that it came from."""
