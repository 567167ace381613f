"""Learning, from one fit to a whole run."""
