"""How a training stands, as the Train tab shows it."""

from __future__ import annotations

import html
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fastsd_lib.core.progress import duration
from fastsd_lib.webui.tabs.shown import notes, progress
from fastsd_lib.webui.trainings import TrainingShown

if TYPE_CHECKING:
    from PIL import Image

STAGES = ("text encoder", "U-Net")  # their steps are counted together
FACTS = (
    ("loss", "Loss", "{:.4f}"),
    ("loss_average", "Average", "{:.4f}"),
    ("images_per_s", "Images per s", "{:.3g}"),
    ("memory_mib", "Memory", "{:,.0f} MiB"),
)


def state_html(shown: TrainingShown) -> str:
    """The line and the bar, the figures, what went wrong and the last lines of it."""
    left = f"about {duration(shown.eta_s)} left" if shown.busy and shown.eta_s else ""
    parts = [progress(shown.line, _share(shown), left), _figures(shown)]
    if shown.problem:
        fix = f"{shown.fix[:1].upper()}{shown.fix[1:]}"
        parts.append(notes([fix] if fix else [" "], "error", shown.problem))
    parts.append(notes(shown.notes, "plain"))
    if shown.log:
        lines = html.escape("\n".join(shown.log))
        parts.append(
            f'<details><summary>Its last lines</summary><pre class="train-log">{lines}</pre></details>'
        )
    return "".join(parts)


def curve_html(shown: TrainingShown) -> str:
    return f'<figure class="train-curve">{shown.curve}</figure>' if shown.curve else ""


def samples_key(shown: TrainingShown) -> str:
    """Changes when the samples do."""
    lines = []
    for path in shown.samples:
        with suppress(OSError):  # gone meanwhile
            lines.append(f"{path.name} {path.stat().st_mtime_ns}")
    return "\n".join([shown.session, *lines]) if lines else ""


def sample_pictures(shown: TrainingShown) -> list[tuple[Image.Image, str]]:
    """Each with its step. The page is given pictures, not paths: sessions are no folder that it serves."""
    from PIL import Image

    found = []
    for path in shown.samples:
        with suppress(OSError), Image.open(path) as opened:
            found.append((opened.convert("RGB"), f"step {int(path.stem.split('_')[1]):,}"))
    return found


def _share(shown: TrainingShown) -> float | None:
    """Of all steps; of the task that is under way before the first step and after the last one."""
    task = shown.task
    if shown.busy and task and task.name not in STAGES:
        return task.done / max(task.total, 1)
    if shown.total_steps:
        return shown.step / shown.total_steps
    return 0.0 if shown.busy else None


def _figures(shown: TrainingShown) -> str:
    found: dict[str, Any] = dict(shown.task.facts) if shown.busy and shown.task else {}
    boxes = "".join(
        f"<div><dt>{label}</dt><dd>{form.format(found[name])}</dd></div>"
        for name, label, form in FACTS
        if isinstance(found.get(name), int | float)
    )
    safe = f'<p class="nothing">{html.escape(str(found["safe"]))}</p>' if found.get("safe") else ""
    return f'<dl class="train-facts">{boxes}</dl>{safe}' if boxes or safe else ""
