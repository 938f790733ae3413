"""DreamBooth: training set, latent cache, loss, trainer, checkpoints."""
