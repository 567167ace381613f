"""Tests of the built site and of the print edition."""
