"""Vision Transformer experiments."""
