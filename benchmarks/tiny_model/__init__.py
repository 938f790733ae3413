"""The embedded base model: the pictures it learns from, its training, its bars."""
