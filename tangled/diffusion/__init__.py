"""Diffusion from first principles."""
