"""Writes the folder: the model's own files, the handler, what the handler needs, and how to deploy it."""

from __future__ import annotations

import shutil
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import plain_disk_errors
from fastsd_lib.core.paths import expanded
from fastsd_lib.vit import calibration_file
from fastsd_lib.vit.config import CONFIG, PROCESSOR, WEIGHTS
from fastsd_lib.vit.model import VitModel
from fastsd_lib.vit.whole_folder import whole_folder

HANDLER = Path(__file__).with_name("handler.py")
#: The toolkit's image brings all of them; these are the oldest that the handler was written for.
REQUIREMENTS = "numpy\npillow>=10\nsafetensors\ntorch\ntransformers>=4.48\n"
_SMALL_FILES = (CONFIG, PROCESSOR, "processor_config.json", calibration_file.NAME)
_MARK = "<!-- written by fastsd: endpoint -->"


def write_endpoint(model: VitModel, folder: Path | str) -> Path:
    """A folder to push to the Hub and deploy: weights, config.json, handler.py, requirements.txt, README.md.

    An endpoint that stands there already is replaced; UserError when the folder holds anything else, or the model has
    no classes to tell.
    """
    folder = expanded(folder)
    if not model.labels:
        raise UserError(
            f"{model.name} has no classifier, so an endpoint could tell no labels.",
            fix="take a model for image classification.",
        )
    if not (model.path / WEIGHTS).is_file() and not any(model.path.glob("*.safetensors.index.json")):
        raise UserError(
            f"{model.path} holds no weights that transformers reads.",
            fix="name the model itself, not an export of it.",
        )
    weights = [*model.path.glob("*.safetensors"), *model.path.glob("*.safetensors.index.json")]
    with plain_disk_errors(f"writing the endpoint {folder}"), whole_folder(folder, ours=_is_ours) as scratch:
        for file in (*weights, *(model.path / name for name in _SMALL_FILES)):
            if file.is_file():
                shutil.copyfile(file, scratch / file.name)
        shutil.copyfile(HANDLER, scratch / "handler.py")
        (scratch / "requirements.txt").write_text(REQUIREMENTS, encoding="utf-8")
        (scratch / "README.md").write_text(_readme(model), encoding="utf-8")
    return folder


def _is_ours(folder: Path) -> bool:
    readme = folder / "README.md"
    return readme.is_file() and _MARK in readme.read_text(encoding="utf-8", errors="replace")


def _readme(model: VitModel) -> str:
    """The model's own card, where it has one, and how this folder is used."""
    card = model.path / "README.md"
    own = card.read_text(encoding="utf-8", errors="replace").rstrip() if card.is_file() else ""
    if _MARK in own:
        own = own.partition(_MARK)[0].rstrip()
    height, width = model.image_px
    shown = ", ".join(f"`{name}`" for name in model.labels[:10]) + (" ..." if len(model.labels) > 10 else "")
    return (
        (own or _head(model))
        + f"""

{_MARK}

## As an endpoint

This folder runs on [Inference Endpoints](https://huggingface.co/docs/inference-endpoints) as it is: push it to the Hub
as a model, create an endpoint of it, and leave the task at "Custom" (`handler.py` answers).

{len(model.labels)} labels ({shown}); pictures of {height} x {width} pixels; {model.parameters:,} parameters.

```python
import base64, requests

picture = base64.b64encode(open("photo.jpg", "rb").read()).decode()
body = {{"inputs": picture, "parameters": {{"top_k": 3}}}}  # or a list of pictures
print(requests.post(URL, json=body, headers={{"Authorization": f"Bearer {{TOKEN}}"}}).json())
```

A picture itself as the body (`Content-Type: image/jpeg`) is answered, too. `function_to_apply` may be `softmax`,
`sigmoid` or `none`. A text is always base64, never a path or an address. To try it here:

```python
from handler import EndpointHandler

print(EndpointHandler(".")({{"inputs": open("photo.jpg", "rb").read()}}))
```
"""
    )


def _head(model: VitModel) -> str:
    return f"""---
pipeline_tag: image-classification
library_name: transformers
---

# {model.name}"""
