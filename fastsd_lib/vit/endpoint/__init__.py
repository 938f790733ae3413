"""A model as a folder that Hugging Face's Inference Endpoints run as it is."""
