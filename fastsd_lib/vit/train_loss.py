"""What a classifier is trained to make small, per picture."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from fastsd_lib.vit.train_config import VitTrainConfig


class Loss:
    """(logits (B, C), targets (B, C) that sum to 1) -> (B,)"""

    def __init__(self, config: VitTrainConfig, labels: np.ndarray, classes: int) -> None:
        self._config = config
        self._weights = None
        if config.balance == "weights":
            counts = np.bincount(labels, minlength=classes)
            # Mean 1 over the training pictures, so that the learning rate keeps its meaning.
            self._weights = torch.from_numpy(len(labels) / (classes * np.maximum(counts, 1))).float()

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        smoothing = self._config.label_smoothing
        if smoothing:
            targets = targets * (1 - smoothing) + smoothing / targets.shape[1]
        if self._weights is not None:
            targets = targets * self._weights.to(targets)
        spoken = F.log_softmax(logits.float(), 1)
        if self._config.loss == "focal":  # Lin et al. 2017 (arXiv 1708.02002)
            targets = targets * (1 - spoken.exp()) ** self._config.focal_gamma
        return -(targets * spoken).sum(1)
