"""Publish: the site and the print edition, built when anything changed."""
