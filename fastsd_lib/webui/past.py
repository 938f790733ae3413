"""Jobs of earlier as the page shows them: their pictures, how they were made, to be repeated or forgotten.

Everything takes the owner: "" where the server asks for no password, else whose jobs alone are there.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.history import History
from fastsd_lib.generation.infotext import ASSUMED, infotext, read_infotext, write_infotext
from fastsd_lib.generation.picture_text import read_texts
from fastsd_lib.generation.samplers import SAMPLERS, SCHEDULES, choose
from fastsd_lib.webui.a1111_answer import save_new
from fastsd_lib.webui.a1111_pictures import READ_FORMATS, file_bytes
from fastsd_lib.webui.context import ApiContext

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastsd_lib.generation.jobs import Job

PAGE = 24  # jobs
THUMBNAIL_PX = 224
COMPARED_PX = 768
STATES = ("done", "stopped", "failed", "lost", "waiting", "drawing")


@dataclass(frozen=True)
class Shown:
    """One page of jobs, the newest first."""

    entries: list[dict[str, Any]]
    count: int  # of all that were found
    page: int  # 1 = the newest
    pages: int


def find(context: ApiContext, owner: str, text: str = "", state: str = "", page: int = 1) -> Shown:
    """A page of them; one that is beyond the last is the last."""
    which = {"text": text.strip()[:1000], "owner": owner or None, "state": state if state in STATES else ""}
    history = _history(context)
    count = history.count(**which)
    pages = max(-(-count // PAGE), 1)
    page = min(max(page, 1), pages)
    return Shown(history.search(**which, most=PAGE, skip=(page - 1) * PAGE), count, page, pages)


def entry_of(context: ApiContext, owner: str, job_id: str) -> dict[str, Any]:
    """UserError for one that is not there, or somebody else's."""
    entry = _history(context).get(job_id)
    if entry is None or (owner and entry["owner"] != owner):
        raise UserError("This job is not in the history any more.", fix="choose another one.")
    return entry


def _history(context: ApiContext) -> History:
    if context.service.history is None:
        raise UserError("This server keeps no history.", fix="start it with `fastsd webui`, which keeps one.")
    return context.service.history


# ------------------------------------------------------------------ pictures


def files_of(entry: Mapping[str, Any], context: ApiContext) -> list[Path]:
    """Its pictures that are still there, inside the folder of pictures; the grid, if there is one, is the last."""
    if context.pictures_dir is None:
        return []
    root = context.pictures_dir.resolve()
    files = [Path(file) for file in entry["files"]]
    return [file for file in files if file.is_file() and file.resolve().is_relative_to(root)]


def thumbnail(entry: Mapping[str, Any], context: ApiContext) -> str:
    """Its first picture, small, as a data URI; "" when there is none that can be read."""
    return next((_coded(file, THUMBNAIL_PX) for file in files_of(entry, context)[:1]), "")


def picture_uri(entry: Mapping[str, Any], context: ApiContext, file: str | None) -> str:
    """One of its pictures as large as a comparison shows it; "" for a file that is none of them."""
    return next((_coded(one, COMPARED_PX) for one in files_of(entry, context) if str(one) == file), "")


def _coded(file: Path, side_px: int) -> str:
    try:
        return _small(file, side_px, file.stat().st_mtime_ns)
    except (OSError, ValueError):  # gone, or no picture any more
        return ""


@lru_cache(maxsize=1024)  # some 10 KB each
def _small(file: Path, side_px: int, changed_ns: int) -> str:
    from PIL import Image

    with Image.open(file, formats=READ_FORMATS) as picture:
        picture.draft("RGB", (2 * side_px, 2 * side_px))
        small = picture.convert("RGB")
    small.thumbnail((side_px, side_px), Image.Resampling.BICUBIC, reducing_gap=2.0)
    coded = io.BytesIO()
    small.save(coded, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(coded.getvalue()).decode("ascii")


def given_pictures(context: ApiContext, owner: str, job_id: str) -> tuple[Image | None, Image | None]:
    """What a job was drawn over, and its mask; UserError when they are not kept any more."""
    request = _history(context).request_of(entry_of(context, owner, job_id)["id"]).request
    return request.init, request.inpaint.mask if request.inpaint else None


# ------------------------------------------------------------------ how they were made


def text_of(entry: Mapping[str, Any], number: int = 0) -> str:
    """The infotext of a picture; of a job that came to none, what was asked for."""
    texts = entry["infotexts"]
    if texts:
        return texts[number if 0 <= number < len(texts) else 0]
    asked = dict(entry["request"])
    sampler, schedule = choose(asked.get("sampler", "ddim"), asked.get("schedule", "automatic"))
    width, height = asked.get("width_px"), asked.get("height_px")
    settings = {
        "Steps": asked.get("inference_steps"),
        "Sampler": SAMPLERS[sampler].label,
        "Schedule type": SCHEDULES[schedule].label,
        "CFG scale": asked.get("guidance_scale"),
        "Seed": asked.get("seed"),
        "Size": f"{width}x{height}" if width and height else None,
        "Model": entry["model"] or None,
        "VAE": entry["vae"] or None,
        "Denoising strength": asked.get("strength") if asked.get("init") else None,
        "Clip skip": asked["clip_skip"] if (asked.get("clip_skip") or 1) > 1 else None,
    }
    return write_infotext(asked.get("prompt", ""), asked.get("negative_prompt", ""), settings)


def differences(first: str, second: str) -> list[tuple[str, str, str]]:
    """(name, of the first, of the second) for every setting in which two infotexts differ."""
    one, other = (_said(text) for text in (first, second))
    keys = list(dict.fromkeys([*one, *other]))
    return [
        (key, one.get(key, ""), other.get(key, "")) for key in keys if one.get(key, "") != other.get(key, "")
    ]


def _said(text: str) -> dict[str, str]:
    found = read_infotext(text) if text else {}
    return {key: str(value) for key, value in found.items() if ASSUMED.get(key) != value}


# ------------------------------------------------------------------ again, and away


def repeat(context: ApiContext, owner: str, job_id: str) -> Job:
    """Order the same again, exactly; its pictures are saved when it is done, whoever is still looking.

    UserError when what it was drawn over is not kept any more, or the model is gone.
    """
    order = _history(context).request_of(entry_of(context, owner, job_id)["id"])
    job = context.service.submit(replace(order, owner=owner, task_id=""))
    context.tasks.note(job.id, [job])
    job.future.add_done_callback(lambda done: _save_when_drawn(context, job, done))
    return job


def _save_when_drawn(context: ApiContext, job: Job, done: Future[Any]) -> None:
    if context.pictures_dir is not None and job.pictures and not done.cancelled():
        context.coders.submit(save_job, context, job)


def save_job(context: ApiContext, job: Job) -> list[Path]:
    """Save what a job drew, and note it in the history. Codes pictures."""
    settings, folder = context.options.values(), context.pictures_dir
    files = []
    for picture in list(job.pictures):
        data = file_bytes(picture.image, settings, infotext(picture.record))
        kind = f"{'img2img' if job.order.kind == 'img2img' else 'txt2img'}-images"
        files.append(save_new(folder, kind, f"-{picture.seed}", data, settings["samples_format"]))
    context.service.note_files(job, files)
    return files


def forget(context: ApiContext, owner: str, job_id: str, with_files: bool = False) -> tuple[int, list[str]]:
    """Forget one job. `with_files`: its pictures, too, where their own text shows that this job made them.

    Returns how many files are gone, and the names of those that stay.
    """
    entry = entry_of(context, owner, job_id)
    gone, left = 0, []
    for file in files_of(entry, context) if with_files else []:
        if _made_by(entry, file):
            file.unlink(missing_ok=True)
            gone += 1
        else:
            left.append(file.name)
    _history(context).delete(entry["id"])
    return gone, left


def _made_by(entry: Mapping[str, Any], file: Path) -> bool:
    """A number may be given again: a file of this name may be another job's, or the user's own by now."""
    try:
        text = read_texts(file).get("parameters", "")
    except UserError:
        return False
    return bool(text) and any(_mark(text) == _mark(own) for own in entry["infotexts"])


def _mark(text: str) -> tuple[Any, ...]:
    """What is the same in the text of a file and in that of the history, which knows no hash yet."""
    found = read_infotext(text)
    keys = ("Prompt", "Negative prompt", "Seed", "Steps", "Sampler", "CFG scale", "Size-1", "Size-2")
    return tuple(found.get(key) for key in keys)
