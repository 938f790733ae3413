"""Diffusers folders and single-file checkpoints, one into the other."""
