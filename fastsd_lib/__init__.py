"""fastsd: from five photos to a personal Stable Diffusion model, on any machine.

Nothing is imported here: each room is loaded by whoever enters it (see docs/architecture.md).
"""
