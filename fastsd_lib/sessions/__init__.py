"""A session on disk: its folder layout, its names, its manifest."""
