"""Trains the ViT that the package ships."""
