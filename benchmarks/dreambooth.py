"""DreamBooth's outcome as numbers, on the embedded model: was the subject learned, did the class survive?

    python3 -m fastsd_lib benchmark dreambooth [--seeds 3] [--pictures 32] [cat]

The drawn character was withheld from the base model's training; the detector is the judge, asked for the
character's colour, number of eyes and headgear, and its own accuracy on fresh renders is printed first.
For the cat photographs: likeness to crops that training never saw, and how well that measure tells the cat
from other photographs.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.tiny_model import world
from benchmarks.tiny_model.package_data import PHOTO_BACKGROUNDS
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.generation import judge as judges
from fastsd_lib.generation.engine import load_engine
from fastsd_lib.generation.request import GenerationRequest
from fastsd_lib.images.likeness import likeness
from fastsd_lib.models.registry import EMBEDDED_FOLDER
from fastsd_lib.training.config import DreamBoothConfig
from fastsd_lib.workflows import dreambooth, outcome
from fastsd_lib.workflows.samples import held_back_cat, sample_subject

MONSTER = sample_subject("monster")
NEW_BACKGROUNDS = tuple(
    name for name in world.COLOURS if name not in (*PHOTO_BACKGROUNDS, MONSTER.traits["colour"])
)


def detector_accuracy(judge: judges.Judge, count: int = 600) -> tuple[float, float]:
    """Share of renders of the subject that are found, and of others (a third of them near misses) that are not."""
    rng = random.Random(777)
    ours, others = [], []
    for number in range(count):
        background = rng.choice([name for name in world.COLOURS if name != world.SUBJECT.colour])
        ours.append(world.draw(world.Scene("monster", background, world.SUBJECT.colour, world.SUBJECT), rng))
        other = world.near_misses(rng) if number % 3 == 0 else world.random_monster(rng)
        background = rng.choice([name for name in world.COLOURS if name != other.colour])
        others.append(world.draw(world.Scene("monster", background, other.colour, other), rng))
    found, mistaken = (
        judges.finds(judge, pictures, MONSTER.traits).float().mean().item() for pictures in (ours, others)
    )
    return found, 1 - mistaken


def diversity(judge: judges.Judge, pictures: list) -> float:
    """Mean distance (1 - cosine) between the judge's views of any two pictures."""
    with torch.inference_mode():
        views = torch.nn.functional.normalize(judge.features(judges.as_batch(pictures)), dim=1)
    likeness_of_pairs = (views @ views.T)[~torch.eye(len(views), dtype=torch.bool)]
    return (1 - likeness_of_pairs).mean().item()


def draw(model: ModelFiles, prompt: str, count: int, seed: int = 5000) -> list:
    return [
        picture.image
        for picture in load_engine(model).generate(GenerationRequest(prompt, seed=seed, count=count))
    ]


def learn(root: Path, subject: str, config: DreamBoothConfig, name: str) -> tuple[ModelFiles, float]:
    """The trained model and the seconds that photos to exported file took."""
    start = time.perf_counter()
    session = dreambooth.open_session(name, root)
    dreambooth.add_photos(session, dreambooth.sample_photos(subject, root / "photos" / subject))
    base = dreambooth.base_model("embedded")
    checkpoint = dreambooth.train(session, base, config)
    return dreambooth.export(session, base, checkpoint), time.perf_counter() - start


def score(judge: judges.Judge, model: ModelFiles, pictures: int, base_diversity: float) -> dict[str, float]:
    found = (
        judges.finds(judge, draw(model, MONSTER.instance_prompt, pictures), MONSTER.traits)
        .float()
        .mean()
        .item()
    )
    class_pictures = draw(model, MONSTER.class_prompt, pictures)
    kept = []
    for number, background in enumerate(NEW_BACKGROUNDS):
        prompt = f"{MONSTER.instance_prompt} on {world.article(background)} background"
        answers = judges.answers(
            judge, draw(model, prompt, max(2, pictures // len(NEW_BACKGROUNDS)), seed=9000 + 100 * number)
        )
        kept += [
            all(answer[name] == value for name, value in {**MONSTER.traits, "background": background}.items())
            for answer in answers
        ]
    return {
        "subject in its own pictures": found,
        "subject in class pictures": judges.finds(judge, class_pictures, MONSTER.traits)
        .float()
        .mean()
        .item(),
        "class diversity, of the base's": diversity(judge, class_pictures) / base_diversity,
        "new background, subject kept": statistics.mean(kept),
    }


def monster(root: Path, seeds: int, pictures: int, changes: dict) -> None:
    judge = judges.load_judge(EMBEDDED_FOLDER)
    found, rejected = detector_accuracy(judge)
    print(
        f"detector on 600 + 600 fresh renders: finds {found:.1%} of the subject, "
        f"rejects {rejected:.1%} of the others (bar >= 98 %)"
    )
    base = dreambooth.base_model("embedded")
    base_diversity = diversity(judge, draw(base, MONSTER.class_prompt, pictures))
    _print_row("before training", [score(judge, base, pictures, base_diversity)], 0.0)
    for label, class_prompt in (("with prior preservation", MONSTER.class_prompt), ("without", "")):
        rows, seconds = [], []
        for seed in range(seeds):
            config = replace(
                dreambooth.recipe_for(base, MONSTER.instance_prompt, class_prompt), seed=seed, **changes
            )
            model, spent = learn(root, "monster", config, f"monster {label} {seed}")
            rows.append(score(judge, model, pictures, base_diversity))
            seconds.append(spent)
        _print_row(label, rows, statistics.mean(seconds))
    print("bars, with prior preservation: >= 80 %, <= 10 %, >= 80 %, >= 60 %")


def _print_row(label: str, rows: list[dict[str, float]], seconds: float) -> None:
    print(f"{label} ({len(rows)} runs{f', {seconds:.0f} s each' if seconds else ''})")
    for name in rows[0]:
        values = [row[name] for row in rows]
        print(
            f"  {name:<34} {statistics.mean(values):6.1%}   each: {', '.join(f'{value:.0%}' for value in values)}",
            flush=True,
        )


def cat(root: Path, pictures: int, changes: dict) -> None:
    about = sample_subject("cat")
    references = held_back_cat()
    photos = _other_photographs(60)
    others = likeness(photos, references)
    same = [float(likeness([one], [two for two in references if two is not one])[0]) for one in references]
    print(
        f"likeness to the held-back cat: other crops of it {min(same):.2f} to {max(same):.2f}, "
        f"{len(photos)} crops of other photographs {others.min():.2f} to {others.max():.2f}"
    )
    base = dreambooth.base_model("embedded")
    config = replace(dreambooth.recipe_for(base, about.instance_prompt, about.class_prompt), **changes)
    before = outcome.cat_likeness(draw(base, about.instance_prompt, pictures))
    model, seconds = learn(root, "cat", config, "cat")
    after = likeness(draw(model, about.instance_prompt, pictures), references)
    print(
        f"generated {about.instance_prompt!r}: {before:.2f} before, {np.mean(after):.2f} after training "
        f"({seconds:.0f} s); above every other photograph: {np.mean(after > others.max()):.0%}"
    )
    of_class = outcome.cat_likeness(draw(model, about.class_prompt, pictures))
    print(f"generated {about.class_prompt!r} after training: {of_class:.2f}")


def _other_photographs(count: int) -> list:
    rng = random.Random(3)
    return [world.draw_photo(rng, 128)[0] for _ in range(count)]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="fastsd benchmark dreambooth", description=__doc__)
    parser.add_argument("subjects", nargs="*", default=["monster", "cat"], metavar="monster|cat")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="change the recipe")
    options = parser.parse_args(argv)
    from fastsd_lib.core.config import apply_overrides

    plain = dreambooth.recipe_for(dreambooth.base_model("embedded"), "x")
    asked = apply_overrides(plain, options.set)
    changes = {word.split("=")[0]: getattr(asked, word.split("=")[0]) for word in options.set}
    with tempfile.TemporaryDirectory(prefix="fastsd-benchmark-") as folder:
        if "monster" in options.subjects:
            monster(Path(folder), options.seeds, options.pictures, changes)
        if "cat" in options.subjects:
            cat(Path(folder), options.pictures, changes)
    return 0
