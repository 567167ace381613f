"""Prove: what every result of the book rests on, and what it lacks."""
