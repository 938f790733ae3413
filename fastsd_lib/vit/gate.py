"""What compressing a model may cost, judged on the user's own pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Cost:
    """A compressed model's answers beside the float32 ones, on the same pictures."""

    pictures: int
    accuracy: float | None  # of the compressed one, 0 to 1; None without labels
    change_points: float | None  # percentage points, negative = worse
    flips: float  # share of the pictures whose best class is another
    max_abs_logit_error: float


@dataclass(frozen=True)
class Gate:
    """One picture is always allowed: a set of 30 cannot tell half a point."""

    points: float = 0.5
    flips: float = 0.02

    def objection(self, cost: Cost) -> str:
        """Empty when the cost is allowed, else one clause that says what is not."""
        one = 1 / cost.pictures
        said = []
        lost = -(cost.change_points or 0.0)
        if lost > max(self.points, 100 * one) + 1e-9:
            said.append(f"accuracy falls by {lost:.1f} points (allowed {self.points:g})")
        if cost.flips > max(self.flips, one) + 1e-9:
            said.append(f"{100 * cost.flips:.1f} % of the answers change (allowed {100 * self.flips:g})")
        return " and ".join(said)


def cost_of(found: np.ndarray, reference: np.ndarray, truth: np.ndarray | None) -> Cost:
    """`found`, `reference`: (N, C) logits; `truth`: (N,) class numbers, or None."""
    if not np.isfinite(found).all():  # a class must not win by being no number
        found = np.nan_to_num(found, nan=-1e9, posinf=-1e9, neginf=-1e9)
    now, before = found.argmax(1), reference.argmax(1)
    right, was_right = (None, None) if truth is None else ((now == truth).mean(), (before == truth).mean())
    return Cost(
        pictures=len(found),
        accuracy=None if right is None else float(right),
        change_points=None if right is None else float(100 * (right - was_right)),
        flips=float((now != before).mean()),
        max_abs_logit_error=float(np.abs(found - reference).max()),
    )
