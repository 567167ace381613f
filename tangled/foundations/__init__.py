"""Foundations."""
