"""Text to image: requests, samplers, the engine."""
