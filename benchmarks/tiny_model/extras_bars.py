"""What the embedded model's LoRA and learned word do to pictures, in figures and as a sheet to look at.

python3 -m benchmarks.tiny_model.extras_bars [--count 48] [--sheet build/extras.png]
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.tiny_model import embedding, lora, world
from fastsd_lib.core.files import atomic_path
from fastsd_lib.generation.engine import Engine, load_engine
from fastsd_lib.generation.judge import answers, load_judge
from fastsd_lib.generation.library import LibraryFolders
from fastsd_lib.generation.request import GenerationRequest
from fastsd_lib.generation.resources import Library
from fastsd_lib.models.registry import EMBEDDED_FOLDER, EXTRAS_FOLDER, base_model

STEPS = 20
SUBJECTS = ("a red monster", "a cat", "a blue star", "a car", "a green heart", "a robot")
BACKGROUNDS = ("yellow", "white", "green", "pink")
TRAITS = {"colour": "purple", "eyes": "1", "headgear": "antennae", "body": "tall"}  # of world.SUBJECT


def draw(engine: Engine, prompts: Sequence[str], count: int) -> list[Image.Image]:
    """As many of each prompt that there are `count`, always from the same seeds."""
    each = -(-count // len(prompts))
    pictures = []
    for number, prompt in enumerate(prompts):
        request = GenerationRequest(prompt, count=each, seed=1000 * number, inference_steps=STEPS)
        pictures += [one.image for one in engine.generate(request)]
    return pictures


def night(engine: Engine, judge, count: int) -> list[list[Image.Image]]:
    """Brightness is the mean of the values, 0 to 255. The judge has never seen the night: it is shown each picture
    as it is, and again with the light that the weight took away."""
    scenes = [(subject, behind) for subject in SUBJECTS for behind in BACKGROUNDS]
    print(f"{lora.NAME}: {count} pictures each, the same seeds")
    print("weight      brightness  blue-red  subject seen  and in full light")
    rows = []
    for weight in (0, 0.5, 1):
        tag = f"<lora:{lora.NAME}:{weight}>"
        prompts = [f"{tag}a photo of {subject} on a {behind} background" for subject, behind in scenes]
        pictures = draw(engine, prompts, count)
        each = len(pictures) // len(scenes)
        wanted = [subject.split()[-1] for subject, _ in scenes for _ in range(each)]
        print(f"{weight:<10}  {_light(judge, pictures, wanted, weight)}", flush=True)
        rows.append(pictures[:: max(len(pictures) // 12, 1)][:12])
    rng = random.Random(77)
    made = [world.random_scene(rng) for _ in range(count)]
    pictures = [lora.by_night(world.draw(scene, rng)) for scene in made]
    print(f"real ones   {_light(judge, pictures, [scene.subject for scene in made], 1)}")
    return rows


def _light(judge, pictures: list[Image.Image], wanted: list[str], weight: float) -> str:
    values = np.stack([np.asarray(one, np.float32) for one in pictures])
    red, _, blue = values.mean((0, 1, 2))
    lit = (values / np.array(lora.MOONLIGHT) ** weight).clip(0, 255).astype(np.uint8)
    shares = []
    for shown in (pictures, [Image.fromarray(one) for one in lit]):
        seen = [answer["subject"] for answer in answers(judge, shown)]
        shares.append(np.mean([one == other for one, other in zip(wanted, seen, strict=True)]))
    return f"{values.mean():10.1f}  {blue - red:+8.1f}  {shares[0]:12.0%}  {shares[1]:17.0%}"


def word(engine: Engine, judge, count: int) -> list[list[Image.Image]]:
    """How often the judge sees the character's traits: with the word, and with words that the model knew before."""
    print(f"\n{embedding.NAME}: {count} pictures each")
    print(f"{'prompt':18} {'  '.join(f'{name:>9}' for name in TRAITS)}  all four")
    rows = []
    said = {"a monster": "monster", "a purple monster": "purple monster", embedding.NAME: embedding.NAME}
    said["real drawings"] = ""
    for label, noun in said.items():
        if noun:
            prompts = [f"a photo of a {noun} on a {behind} background" for behind in BACKGROUNDS]
            pictures = draw(engine, prompts, count)
        else:
            pictures = world.subject_pictures(count, 77, backgrounds=BACKGROUNDS)
        seen = answers(judge, pictures)
        shares = [np.mean([one[name] == value for one in seen]) for name, value in TRAITS.items()]
        whole = np.mean([all(one[name] == value for name, value in TRAITS.items()) for one in seen])
        print(f"{label:18} {'  '.join(f'{share:9.0%}' for share in shares)}  {whole:8.0%}", flush=True)
        rows.append(pictures[:: max(len(pictures) // 12, 1)][:12])
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--sheet", type=Path, help="a picture of some of them, a row for each line")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    engine = load_engine(base_model("embedded"))
    folders = LibraryFolders(loras=(EXTRAS_FOLDER / "Lora",), embeddings=(EXTRAS_FOLDER / "embeddings",))
    engine.library = Library.of(folders)
    judge = load_judge(EMBEDDED_FOLDER)
    rows = night(engine, judge, arguments.count) + word(engine, judge, arguments.count)
    if arguments.sheet:
        sheet = Image.new("RGB", (12 * 64, len(rows) * 64))
        for y, row in enumerate(rows):
            for x, picture in enumerate(row):
                sheet.paste(picture, (x * 64, y * 64))
        with atomic_path(arguments.sheet) as scratch:
            sheet.save(scratch)
