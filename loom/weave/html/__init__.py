"""What the site alone needs."""
