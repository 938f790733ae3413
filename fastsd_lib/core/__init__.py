"""Ground floor: errors, atomic files, configs, progress. It has never heard of Stable Diffusion."""
