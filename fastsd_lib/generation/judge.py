"""The judge: a small network that says what a 64-pixel picture shows; it ships with the embedded model.

It is trained on other renders than the model (other seeds), and its own accuracy on a third, untouched set
is printed beside every figure that it gives.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

COLOURS = (
    "red",
    "orange",
    "yellow",
    "green",
    "teal",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
    "gray",
)
SUBJECTS = (
    "cat",
    "dog",
    "frog",
    "lion",
    "owl",
    "fish",
    "robot",
    "tree",
    "flower",
    "apple",
    "car",
    "rocket",
    "star",
    "heart",
    "circle",
    "square",
    "triangle",
    "monster",
    "photograph",
)
# What it answers, in this order; a trait that a picture has not is labelled -1 and not scored.
TRAITS = {
    "subject": SUBJECTS,
    "colour": COLOURS,
    "background": COLOURS,
    "body": ("round", "square", "tall"),
    "eyes": ("1", "2", "3"),
    "headgear": ("bald", "horns", "antennae", "ears"),
}
BELOW = tuple(TRAITS)  # column names of a label row


def labels_of(scene) -> list[int]:
    """One label row in the order of TRAITS."""
    if scene is None:
        return [SUBJECTS.index("photograph"), -1, -1, -1, -1, -1]
    monster = scene.monster
    return [
        SUBJECTS.index(scene.subject),
        COLOURS.index(scene.colour) if scene.colour else -1,
        COLOURS.index(scene.background),
        TRAITS["body"].index(monster.body) if monster else -1,
        monster.eyes - 1 if monster else -1,
        TRAITS["headgear"].index(monster.headgear) if monster else -1,
    ]


class Judge(nn.Module):
    """Pictures (B, 3, 64, 64) in [-1, 1] -> one set of logits per trait."""

    width = 256

    def __init__(self) -> None:
        super().__init__()

        def stage(before: int, after: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(before, after, 3, stride=2, padding=1),
                nn.GroupNorm(8, after),
                nn.SiLU(),
                nn.Conv2d(after, after, 3, padding=1),
                nn.GroupNorm(8, after),
                nn.SiLU(),
            )

        self.trunk = nn.Sequential(stage(3, 32), stage(32, 64), stage(64, 128))  # (B, 128, 8, 8)
        self.mix = nn.Linear(128 * 5, self.width)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(self.width, len(values)) for name, values in TRAITS.items()}
        )

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """(B, 256): the whole, and each quarter, of what it sees."""
        grid = self.trunk(pictures)
        whole = grid.amax((2, 3))
        quarters = F.adaptive_avg_pool2d(grid, 2).flatten(1)
        return F.silu(self.mix(torch.cat([whole, quarters], 1)))

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.features(pictures)
        return {name: head(features) for name, head in self.heads.items()}

    def loss(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        total = features.new_zeros(())
        for column, (_, head) in enumerate(self.heads.items()):
            if (labels[:, column] >= 0).any():
                total = total + F.cross_entropy(
                    head(features), labels[:, column], ignore_index=-1, label_smoothing=0.02
                )
        return total

    @torch.no_grad()
    def accuracy(self, pictures: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        """Share of right answers per trait among the pictures that have it."""
        answers = [self(part) for part in pictures.split(256)]
        shares = {}
        for column, name in enumerate(TRAITS):
            said = torch.cat([answer[name].argmax(1) for answer in answers])
            has = labels[:, column] >= 0
            shares[name] = (said[has] == labels[has, column]).float().mean().item()
        return shares


def load_judge(folder: Path) -> Judge:
    """The judge that ships beside the embedded model."""
    from safetensors.torch import load_file

    judge = Judge().eval().requires_grad_(False)
    judge.load_state_dict(
        {name: tensor.float() for name, tensor in load_file(folder / "judge.safetensors").items()}
    )
    return judge


def as_batch(pictures: list) -> torch.Tensor:
    """PIL pictures -> (B, 3, 64, 64) in [-1, 1]."""
    import numpy as np

    arrays = [np.asarray(picture.convert("RGB").resize((64, 64)), dtype=np.float32) for picture in pictures]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 127.5 - 1


@torch.inference_mode()
def answers(judge: Judge, pictures: list) -> list[dict[str, str]]:
    """What the judge sees in each PIL picture: one value per trait."""
    logits = judge(as_batch(pictures))
    best = {name: values.argmax(1).tolist() for name, values in logits.items()}
    return [{name: TRAITS[name][best[name][row]] for name in TRAITS} for row in range(len(pictures))]


def finds(judge: Judge, pictures: list, traits: dict[str, str]) -> torch.Tensor:
    """(B,) bool: does the judge see every one of `traits`, such as {"colour": "purple", "eyes": "1"}?"""
    return torch.tensor(
        [all(answer[name] == value for name, value in traits.items()) for answer in answers(judge, pictures)]
    )
