"""A ViT behind HTTP: the requests of Hugging Face's Inference Endpoints for pictures, answered in batches."""
