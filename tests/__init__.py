"""Tests of the package, of loom and of what they build."""
