"""Labels for pictures on Hugging Face's Inference Endpoints, whose toolkit loads this file. Made by fastsd.

It needs transformers, torch and pillow alone. Where fastsd_lib is installed, that computes: the same labels, sooner.
"""

import base64
import binascii
import importlib.util
import io
import json
import logging
import re
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
MOST_PICTURES = 64  # of one request
MOST_PIXELS = 64_000_000  # of one picture
BATCH = 16
FUNCTIONS = ("softmax", "sigmoid", "none")
EXAMPLE = '{"inputs": "<a picture in base64>", "parameters": {"top_k": 5}}'


class EndpointHandler:
    """One model. What it raises, the toolkit tells the client as {"error": ...}."""

    def __init__(self, path=""):
        folder = Path(path) if path else Path(__file__).parent
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        names = {int(number): name for number, name in config["id2label"].items()}
        self.labels = [names[number] for number in range(len(names))]
        several = config.get("problem_type") == "multi_label_classification" or len(self.labels) == 1
        self.usual = "sigmoid" if several else "softmax"
        self.temperature = _temperature(folder)
        self.computed_by, self._logits = _opened(folder)

    def __call__(self, data):
        """{"inputs": picture or list of pictures, "parameters": {"top_k", "function_to_apply"}} -> labels with scores.

        A picture is what the toolkit makes of a body (PIL.Image), bytes, or a text in base64; never a path or address.
        One picture: [{"label", "score"}, ...], best first. Several: a list of such lists.
        """
        if not isinstance(data, dict) or "inputs" not in data:
            raise ValueError(f"The body has no inputs; send {EXAMPLE}")
        top_k, function = self._parameters(data.get("parameters") or {})
        several = isinstance(data["inputs"], (list, tuple))
        inputs = list(data["inputs"]) if several else [data["inputs"]]
        if not 1 <= len(inputs) <= MOST_PICTURES:
            raise ValueError(f"inputs holds {len(inputs)} pictures; send 1 to {MOST_PICTURES}")
        pictures = [
            _picture(one, f"inputs[{number}]" if several else "inputs") for number, one in enumerate(inputs)
        ]
        rows = np.concatenate(
            [self._logits(pictures[at : at + BATCH]) for at in range(0, len(pictures), BATCH)]
        )
        found = [self._told(row, top_k, function) for row in rows.astype(np.float64)]
        return found if several else found[0]

    def _parameters(self, given):
        if not isinstance(given, dict) or set(given) - {"top_k", "function_to_apply"}:
            raise ValueError("parameters may hold top_k and function_to_apply")
        top_k, function = given.get("top_k"), given.get("function_to_apply")
        top_k = 5 if top_k is None else top_k
        if type(top_k) is not int or top_k < 1:
            raise ValueError(f"top_k is {str(top_k)[:40]!r}; send a number of labels, 1 or more")
        if function is not None and function not in FUNCTIONS:
            raise ValueError(
                f"function_to_apply is {str(function)[:40]!r}; send one of {', '.join(FUNCTIONS)}"
            )
        return min(top_k, len(self.labels)), function

    def _told(self, logits, top_k, function):
        """Scores are calibrated unless a function is named: then they are what transformers' pipeline tells."""
        if function is None:
            function, logits = self.usual, logits / self.temperature
        if function == "softmax":
            powers = np.exp(logits - logits.max())
            scores = powers / powers.sum()
        elif function == "sigmoid":
            scores = 0.5 * (1 + np.tanh(logits / 2))
        else:
            scores = logits
        best = np.argsort(-scores, kind="stable")[:top_k]
        return [{"label": self.labels[number], "score": float(scores[number])} for number in best]


def _opened(folder):
    """What computes, and the function from pictures to logits."""
    if importlib.util.find_spec("fastsd_lib") is not None:
        try:
            return _by_fastsd(folder)
        except Exception:  # a part of it is not installed: the endpoint works without
            logging.getLogger(__name__).warning(
                "fastsd_lib cannot run this model; transformers does", exc_info=True
            )
    return _by_transformers(folder)


def _by_transformers(folder):
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    device = "cuda" if torch.cuda.is_available() else "cpu"
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForImageClassification.from_pretrained(folder).eval().to(device)

    def logits(pictures):
        pixels = processor(images=pictures, return_tensors="pt")["pixel_values"].to(device)
        with torch.inference_mode():
            return model(pixel_values=pixels).logits.float().cpu().numpy()

    return "transformers", logits


def _by_fastsd(folder):
    from fastsd_lib.vit.model import open_model
    from fastsd_lib.vit.runner import open_runner
    from fastsd_lib.vit.transform import Transform

    model = open_model(folder)
    transform, runner = Transform.of(model), open_runner(model)
    return runner.name, lambda pictures: runner.run(np.stack([transform(one) for one in pictures]))


def _picture(given, what):
    if isinstance(given, Image.Image):
        return ImageOps.exif_transpose(given).convert("RGB")
    if isinstance(given, str):
        encoded = re.sub(r"^data:[\w.+/-]*(;[\w=.+-]+)*;base64,", "", given[:200]) + given[200:]
        encoded = "".join(encoded.split()).rstrip("=")
        try:
            given = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError(f"{what} is no picture in base64; send {EXAMPLE}") from None
    if not isinstance(given, (bytes, bytearray)):
        raise ValueError(f"{what} is of the kind {type(given).__name__}; send {EXAMPLE}")
    return _decoded(bytes(given), what)


def _decoded(data, what):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
        if picture.width * picture.height <= MOST_PIXELS:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except Exception:  # damaged bytes make decoders raise nearly anything
        raise ValueError(f"{what} is no picture that can be read") from None
    raise ValueError(
        f"{what} has {picture.width} x {picture.height} pixels; the most is {MOST_PIXELS:,} in all"
    )


def _temperature(folder):
    """What the logits were found to need so that scores are probabilities; 1 where nobody measured it."""
    file = folder / "fastsd_vit.json"
    if not file.is_file():
        return 1.0
    return float(json.loads(file.read_text(encoding="utf-8")).get("temperature") or 1.0)
