"""Which models there are: the registry, the embedded base model, identification."""
