"""What the print edition alone needs."""
