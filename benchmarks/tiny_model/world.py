"""The small world that the embedded model learns: pictures drawn by this program, with their captions.

Twelve emoji subjects, five shapes in twelve colours and a rich class of drawn monsters, on twelve
background colours, at 64 pixels. Monsters are the class that DreamBooth personalises, so they vary in
colour, body, eyes, headgear and belly; one combination (`SUBJECT`) is never drawn for training.
Emoji glyphs come from Noto Color Emoji (SIL Open Font License; Debian: fonts-noto-color-emoji).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

COLOURS = {
    "red": (214, 39, 40),
    "orange": (245, 134, 32),
    "yellow": (247, 213, 48),
    "green": (52, 160, 72),
    "teal": (64, 200, 196),
    "blue": (40, 92, 208),
    "purple": (134, 62, 176),
    "pink": (245, 140, 186),
    "brown": (126, 78, 44),
    "black": (28, 28, 32),
    "white": (244, 244, 240),
    "gray": (140, 142, 146),
}
EMOJI = {
    "cat": "🐱",
    "dog": "🐶",
    "frog": "🐸",
    "lion": "🦁",
    "owl": "🦉",
    "fish": "🐟",
    "robot": "🤖",
    "tree": "🌳",
    "flower": "🌻",
    "apple": "🍎",
    "car": "🚗",
    "rocket": "🚀",
}
SHAPES = ("star", "heart", "circle", "square", "triangle")
SUBJECTS = (*EMOJI, *SHAPES, "monster")
BODIES = ("round", "square", "tall")
EYES = (1, 2, 3)
HEADGEAR = ("bald", "horns", "antennae", "ears")
FONT_PLACES = (
    Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"),
    Path("/usr/share/fonts/noto/NotoColorEmoji.ttf"),
    Path("/System/Library/Fonts/Apple Color Emoji.ttc"),
)
BITMAP_FONT_PX = 109  # Noto Color Emoji is a bitmap font of this one size


@dataclass(frozen=True)
class Monster:
    colour: str
    body: str
    eyes: int
    headgear: str
    belly: bool = False
    teeth: bool = False


@dataclass(frozen=True)
class Scene:
    """All that decides a picture, but for its random placement."""

    subject: str
    background: str
    colour: str = ""  # shapes and monsters only
    monster: Monster | None = None


# The character of the DreamBooth benchmark: this combination is withheld from training.
SUBJECT = Monster("purple", "tall", 1, "antennae", belly=True, teeth=True)


def is_withheld(monster: Monster) -> bool:
    return (monster.colour, monster.eyes, monster.headgear) == (
        SUBJECT.colour,
        SUBJECT.eyes,
        SUBJECT.headgear,
    )


def random_monster(rng: random.Random, colour: str | None = None) -> Monster:
    """A monster of the class; never the withheld one."""
    while True:
        monster = Monster(
            colour or rng.choice(tuple(COLOURS)),
            rng.choice(BODIES),
            rng.choice(EYES),
            rng.choice(HEADGEAR),
            belly=rng.random() < 0.5,
            teeth=rng.random() < 0.5,
        )
        if not is_withheld(monster):
            return monster


def random_scene(rng: random.Random, monster_share: float = 0.28) -> Scene:
    background = rng.choice(tuple(COLOURS))
    others = [name for name in COLOURS if name != background]
    if rng.random() < monster_share:
        monster = random_monster(rng, rng.choice(others))
        return Scene("monster", background, monster.colour, monster)
    subject = rng.choice((*EMOJI, *SHAPES))
    return Scene(subject, background, rng.choice(others) if subject in SHAPES else "")


def article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeio" else f"a {noun}"


def caption(scene: Scene, rng: random.Random) -> str:
    """One of the ways to say it: most captions are complete, some leave the colour or background out."""
    noun = scene.subject
    if scene.colour and rng.random() < 0.8:
        noun = f"{scene.colour} {noun}"
    text = article(noun)
    if rng.random() < 0.75:
        text += f" on {article(scene.background)} background"
    lead = rng.random()
    return f"a photo of {text}" if lead < 0.8 else f"a picture of {text}" if lead < 0.9 else text


def full_caption(scene: Scene) -> str:
    noun = f"{scene.colour} {scene.subject}".strip()
    return f"a photo of {article(noun)} on {article(scene.background)} background"


def draw(scene: Scene, rng: random.Random, size_px: int = 64) -> Image.Image:
    """One RGB picture, `size_px` square, drawn at twice the size and reduced."""
    large = size_px * 2
    canvas = _background(COLOURS[scene.background], rng, large)
    layer = _subject_layer(scene, rng, large)
    scale = rng.uniform(0.7, 0.92)
    side = round(large * scale)
    layer = layer.resize((side, side), Image.Resampling.BILINEAR)
    if rng.random() < 0.5 and scene.subject != "car":
        layer = layer.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    layer = layer.rotate(rng.uniform(-10, 10), Image.Resampling.BICUBIC)
    slack = large - side
    left = round(slack / 2 + rng.uniform(-0.35, 0.35) * slack)
    top = round(slack / 2 + rng.uniform(-0.35, 0.35) * slack)
    if rng.random() < 0.6:
        shade = Image.new("L", (large, large))
        shade.paste(layer.getchannel("A").point(lambda a: a // 4), (left + large // 40, top + large // 28))
        shade = shade.filter(ImageFilter.BoxBlur(large / 50))
        canvas.paste((0, 0, 0), (0, 0), shade)
    canvas.paste(layer, (left, top), layer)
    return canvas.reduce(2)


def _background(colour: tuple[int, int, int], rng: random.Random, side: int) -> Image.Image:
    base = np.array(colour, np.float32)
    kind = rng.random()
    if kind < 0.45:
        pixels = np.broadcast_to(base, (side, side, 3)).copy()
    elif kind < 0.8:  # a gradient between a lighter and a darker tone of the colour
        angle = rng.uniform(0, 2 * math.pi)
        y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side - 0.5
        ramp = (x * math.cos(angle) + y * math.sin(angle)) * rng.uniform(0.15, 0.45)
        pixels = (
            base * (1 - np.abs(ramp)[..., None])
            + np.where(ramp > 0, 255.0, 0.0)[..., None] * np.abs(ramp)[..., None]
        )
    else:  # soft clouds
        noise = (
            np.random.default_rng(rng.getrandbits(32))
            .normal(0, rng.uniform(6, 14), (5, 5))
            .astype(np.float32)
        )
        clouds = Image.fromarray(noise, "F").resize((side, side), Image.Resampling.BICUBIC)
        pixels = base + np.asarray(clouds)[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8), "RGB")


def _subject_layer(scene: Scene, rng: random.Random, side: int) -> Image.Image:
    if scene.subject in EMOJI:
        return _glyph(EMOJI[scene.subject]).resize((side, side), Image.Resampling.LANCZOS)
    layer = Image.new("RGBA", (side, side))
    pen = ImageDraw.Draw(layer)
    if scene.monster:
        _draw_monster(pen, scene.monster, rng, side)
    else:
        _draw_shape(pen, scene.subject, _vary(COLOURS[scene.colour], rng), side)
    return layer


@cache
def _glyph(character: str) -> Image.Image:
    """The emoji as a square RGBA picture without margins."""
    place = next((path for path in FONT_PLACES if path.is_file()), None)
    if place is None:
        raise SystemExit("No colour emoji font found. -> apt-get install fonts-noto-color-emoji")
    font = ImageFont.truetype(str(place), BITMAP_FONT_PX)
    layer = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(layer).text((12, 12), character, font=font, embedded_color=True)
    layer = layer.crop(layer.getbbox())
    square = Image.new("RGBA", (max(layer.size), max(layer.size)))
    square.paste(layer, ((square.width - layer.width) // 2, (square.height - layer.height) // 2))
    return square


def _vary(colour: tuple[int, int, int], rng: random.Random) -> tuple[int, int, int]:
    return tuple(max(0, min(255, value + rng.randint(-10, 10))) for value in colour)


def _shade(colour: tuple[int, int, int], factor: float) -> tuple[int, int, int]:
    """Towards white above 1, towards black below."""
    if factor >= 1:
        return tuple(round(value + (255 - value) * (factor - 1)) for value in colour)
    return tuple(round(value * factor) for value in colour)


def _draw_shape(pen: ImageDraw.ImageDraw, shape: str, colour: tuple[int, int, int], side: int) -> None:
    def at(*points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(x * side, y * side) for x, y in points]

    edge = dict(fill=colour, outline=_shade(colour, 0.7), width=max(1, side // 42))
    if shape == "circle":
        pen.ellipse(at((0.08, 0.08), (0.92, 0.92)), **edge)
    elif shape == "square":
        pen.rectangle(at((0.12, 0.12), (0.88, 0.88)), **edge)
    elif shape == "triangle":
        pen.polygon(at((0.5, 0.08), (0.95, 0.9), (0.05, 0.9)), **edge)
    elif shape == "star":
        spokes = [(0.5 if i % 2 == 0 else 0.21, math.pi * (i / 5 - 0.5)) for i in range(10)]
        pen.polygon(at(*((0.5 + r * math.cos(a), 0.53 + r * math.sin(a)) for r, a in spokes)), **edge)
    else:
        turns = [2 * math.pi * i / 60 for i in range(60)]
        heart = [
            (
                16 * math.sin(t) ** 3,
                13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t),
            )
            for t in turns
        ]
        pen.polygon(at(*((0.5 + x / 36, 0.48 - y / 36) for x, y in heart)), **edge)


def _draw_monster(pen: ImageDraw.ImageDraw, monster: Monster, rng: random.Random, side: int) -> None:
    colour = _vary(COLOURS[monster.colour], rng)
    # An outline that stands out on a black body too.
    rim = _shade(colour, 0.62) if sum(colour) > 150 else (92, 92, 100)
    line = max(1, side // 42)

    def box(x0: float, y0: float, x1: float, y1: float) -> list[float]:
        return [x0 * side, y0 * side, x1 * side, y1 * side]

    def line_to(x0: float, y0: float, x1: float, y1: float, width: float, fill: tuple[int, int, int]) -> None:
        pen.line(box(x0, y0, x1, y1), fill=fill, width=max(1, round(width * side)))

    x0, y0, x1, y1 = {
        "round": (0.12, 0.26, 0.88, 0.92),
        "square": (0.16, 0.3, 0.84, 0.9),
        "tall": (0.26, 0.2, 0.74, 0.93),
    }[monster.body]
    gold = (250, 214, 80) if monster.colour != "yellow" else (255, 250, 225)
    for way in (-1, 1):
        root = 0.5 + way * (x1 - x0) * 0.27
        tip = 0.5 + way * (x1 - x0) * 0.42
        if monster.headgear == "horns":
            pen.polygon(
                [(v * side) for v in (root - 0.08, y0 + 0.1, root + 0.08, y0 + 0.1, tip, 0.04)],
                fill=gold,
                outline=_shade(gold, 0.6),
            )
        elif monster.headgear == "antennae":
            line_to(root * 0.6 + 0.2, y0 + 0.06, tip, 0.1, 0.03, rim)
            pen.ellipse(
                box(tip - 0.07, 0.03, tip + 0.07, 0.17), fill=gold, outline=_shade(gold, 0.6), width=line
            )
        elif monster.headgear == "ears":
            pen.ellipse(
                box(tip - 0.13, y0 - 0.1, tip + 0.13, y0 + 0.16), fill=colour, outline=rim, width=line
            )
            pen.ellipse(box(tip - 0.06, y0 - 0.03, tip + 0.06, y0 + 0.09), fill=_shade(colour, 1.45))
        foot = 0.5 + way * (x1 - x0) * 0.25
        pen.ellipse(box(foot - 0.1, y1 - 0.08, foot + 0.1, y1 + 0.06), fill=rim)
    if monster.body == "round":
        pen.ellipse(box(x0, y0, x1, y1), fill=colour, outline=rim, width=line)
    else:
        radius = 0.08 if monster.body == "square" else 0.22
        pen.rounded_rectangle(box(x0, y0, x1, y1), radius=radius * side, fill=colour, outline=rim, width=line)
    if monster.belly:
        pen.ellipse(box(0.5 - 0.14, y1 - 0.26, 0.5 + 0.14, y1 - 0.04), fill=_shade(colour, 1.5))
    _draw_face(pen, monster, side, y0 + (y1 - y0) * 0.33, y0 + (y1 - y0) * 0.62, line)


def _draw_face(
    pen: ImageDraw.ImageDraw, monster: Monster, side: int, eye_y: float, mouth_y: float, line: int
) -> None:
    centres = {1: (0.5,), 2: (0.38, 0.62), 3: (0.33, 0.5, 0.67)}[monster.eyes]
    radius = {1: 0.145, 2: 0.1, 3: 0.075}[monster.eyes]
    for x in centres:
        y = eye_y - (0.05 if monster.eyes == 3 and x == 0.5 else 0)
        for reach, fill in ((radius, (255, 255, 255)), (radius * 0.52, (20, 20, 24))):
            pen.ellipse(
                [(x - reach) * side, (y - reach) * side, (x + reach) * side, (y + reach) * side],
                fill=fill,
                outline=(60, 60, 66) if reach == radius else None,
                width=line,
            )
    left, right = 0.38 * side, 0.62 * side
    top, bottom = (mouth_y - 0.05) * side, (mouth_y + 0.07) * side
    pen.chord([left, top - (bottom - top) * 0.4, right, bottom], 0, 180, fill=(70, 16, 28))
    if monster.teeth:
        middle = (top + bottom) / 2 - (bottom - top) * 0.2
        for x in (0.44, 0.53):
            pen.polygon(
                [(x * side, middle), ((x + 0.05) * side, middle), ((x + 0.025) * side, middle + 0.06 * side)],
                fill=(255, 255, 255),
            )


# Photographs of scikit-image, so that real textures are not wholly foreign: (file, caption noun, region in [0, 1]).
PHOTOS = (
    ("astronaut.png", "person", (0.1, 0.0, 0.75, 0.65)),
    ("coffee.png", "cup", (0.1, 0.0, 0.95, 1.0)),
    ("rocket.jpg", "launch", (0.2, 0.0, 0.8, 1.0)),
    ("motorcycle_left.png", "motorcycle", (0.1, 0.1, 0.95, 1.0)),
)
# Textures without a name that captions would use: only for the VAE.
TEXTURES = tuple(
    (name, "texture", (0.0, 0.0, 1.0, 1.0))
    for name in (
        "brick.png", "camera.png", "clock_motion.png", "coins.png", "grass.png", "gravel.png",
        "hubble_deep_field.jpg", "ihc.png", "moon.png", "retina.jpg",
    )
)  # fmt: skip


@cache
def _photo(name: str, region: tuple[float, float, float, float]) -> Image.Image:
    import skimage

    picture = Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")
    width, height = picture.size
    left, top, right, bottom = region
    return picture.crop(
        (round(left * width), round(top * height), round(right * width), round(bottom * height))
    )


def draw_photo(
    rng: random.Random,
    size_px: int = 64,
    smallest: float = 0.55,
    photos: Sequence[tuple[str, str, tuple[float, float, float, float]]] = PHOTOS,
) -> tuple[Image.Image, str, str]:
    """A crop of a real photograph (never the cat, which the demo keeps for DreamBooth): picture, caption, noun.

    `smallest`: the least share of the short side that a crop takes.
    """
    name, noun, region = rng.choice(photos)
    picture = _photo(name, region)
    side = round(min(picture.size) * rng.uniform(smallest, 1.0))
    left, top = rng.randint(0, picture.width - side), rng.randint(0, picture.height - side)
    crop = picture.crop((left, top, left + side, top + side)).resize(
        (size_px, size_px), Image.Resampling.LANCZOS
    )
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return crop, f"a real photo of {article(noun)}", noun


def subject_pictures(
    count: int, seed: int, size_px: int = 64, backgrounds: tuple[str, ...] = tuple(COLOURS)
) -> list[Image.Image]:
    """Pictures of the withheld character, as a user would photograph it."""
    rng = random.Random(seed)
    return [
        draw(Scene("monster", backgrounds[i % len(backgrounds)], SUBJECT.colour, SUBJECT), rng, size_px)
        for i in range(count)
    ]


def near_misses(rng: random.Random) -> Monster:
    """The withheld character with one trait changed: what a detector must not take for it."""
    trait = rng.choice(("colour", "eyes", "headgear"))
    choices = {"colour": tuple(COLOURS), "eyes": EYES, "headgear": HEADGEAR}[trait]
    return replace(
        SUBJECT, **{trait: rng.choice([value for value in choices if value != getattr(SUBJECT, trait)])}
    )
