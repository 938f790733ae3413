"""A teacher whose answers a smaller model learns from (Hinton, Vinyals and Dean 2015, arXiv 1503.02531)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.geometry import Geometry
from fastsd_lib.vit.model import VitModel, load_torch
from fastsd_lib.vit.model_config import read_raw
from fastsd_lib.vit.train_config import VitTrainConfig
from fastsd_lib.vit.train_data import Scale


class Teacher:
    """Judges the very pixels that the student sees, in its own size and scale."""

    def __init__(
        self, model: VitModel, classes: Sequence[str], student: Geometry, config: VitTrainConfig, device: str
    ) -> None:
        lacking = [name for name in classes if name not in model.labels]
        if lacking:
            raise UserError(
                f"The teacher {model.name} does not know {', '.join(lacking[:3])}"
                f"{' ...' if len(lacking) > 3 else ''}.",
                fix="take a teacher that was trained on the same classes.",
            )
        self._order = torch.tensor([model.labels.index(name) for name in classes], device=device)
        self._model = load_torch(model, device=device).requires_grad_(False)
        geometry = Geometry.read(model.path, read_raw(model.path)["model_type"])
        self._size, self._scale, self._student = geometry.size, Scale.of(geometry), Scale.of(student)
        self._config = config

    @torch.no_grad()
    def _answers(self, pixels: torch.Tensor) -> Any:
        values = self._student.undo(pixels)
        if values.shape[2:] != self._size:
            values = F.interpolate(values, self._size, mode="bilinear", antialias=True, align_corners=False)
        return self._model(self._scale.apply(values), output_hidden_states=self._config.distil_features > 0)

    def loss(self, pixels: torch.Tensor, student: Any) -> torch.Tensor:
        """(B,): how far the student's answers are from the teacher's, both softened by the temperature."""
        told = self._answers(pixels)
        temperature = self._config.distil_temperature
        teacher = F.log_softmax(told.logits[:, self._order].float() / temperature, 1)
        spoken = F.log_softmax(student.logits.float() / temperature, 1)
        # Times T^2: gradients keep their size whatever the temperature.
        loss = (teacher.exp() * (teacher - spoken)).sum(1) * temperature**2
        if self._config.distil_features:
            loss = loss + self._config.distil_features * _likeness_loss(
                _features(student.hidden_states[-1]), _features(told.hidden_states[-1])
            )
        return loss


def _features(hidden: torch.Tensor) -> torch.Tensor:
    """(B, N) of tokens (B, T, N) or of maps (B, N, H, W): the mean over places."""
    return (hidden.mean(1) if hidden.dim() == 3 else hidden.mean((2, 3))).float()


def _likeness_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """(B,): pictures alike to the teacher should be alike to the student, whatever the widths of both.

    Tung and Mori 2019, "Similarity-preserving knowledge distillation" (arXiv 1907.09682).
    """
    own, theirs = (F.normalize(one @ one.T, dim=1) for one in (student, teacher))
    return ((own - theirs) ** 2).mean(1)
