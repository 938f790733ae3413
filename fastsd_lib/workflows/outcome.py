"""Was the subject learned? Numbers for the sample subjects, where the answer is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.models.registry import EMBEDDED_FOLDER
from fastsd_lib.workflows.samples import held_back_cat, sample_subject

SEEDS = range(1000, 1016)


@dataclass(frozen=True)
class Outcome:
    """One measure, before and after; which way is better is in its name."""

    measure: str
    before: float  # a share or a likeness, both in [0, 1]
    after: float

    def __str__(self) -> str:
        return f"{self.measure}: {self.before:.0%} before, {self.after:.0%} after"


def measure(subject: str, base: ModelFiles, trained: ModelFiles) -> list[Outcome]:
    """What the same sixteen seeds show before and after training on a sample subject."""
    from fastsd_lib.workflows import dreambooth

    about = sample_subject(subject)
    drawn = {
        (when, prompt): dreambooth.draw(model, prompt, SEEDS)
        for when, model in (("before", base), ("after", trained))
        for prompt in (about.instance_prompt, about.class_prompt)
    }

    def compared(name: str, prompt: str, score) -> Outcome:
        return Outcome(name, score(drawn["before", prompt]), score(drawn["after", prompt]))

    if about.traits:
        return [
            compared(
                f"the subject in pictures of {about.instance_prompt!r}",
                about.instance_prompt,
                lambda seen: share_found(seen, about.traits),
            ),
            compared(
                f"the subject in pictures of {about.class_prompt!r}",
                about.class_prompt,
                lambda seen: share_found(seen, about.traits),
            ),
        ]
    return [
        compared(
            f"likeness to held-back photos of {about.instance_prompt!r}", about.instance_prompt, cat_likeness
        )
    ]


def share_found(
    pictures: list, traits: dict[str, str], judge_folder: Path = EMBEDDED_FOLDER
) -> float:  # PIL images
    """Share of 64-pixel pictures in which the judge sees every one of `traits`."""
    from fastsd_lib.generation import judge as judges

    return judges.finds(judges.load_judge(judge_folder), pictures, traits).float().mean().item()


def cat_likeness(pictures: list) -> float:
    """Mean likeness to the crops of the cat that training never saw."""
    from fastsd_lib.images.likeness import likeness

    return float(likeness(pictures, held_back_cat()).mean())
