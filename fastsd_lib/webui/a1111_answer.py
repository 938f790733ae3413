"""Finished pictures -> the answer of A1111's drawing routes: base64, the grid, and `info`, which is JSON in a string."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsd_lib.core.files import atomic_path
from fastsd_lib.generation.infotext import VERSION
from fastsd_lib.generation.samplers import SAMPLERS, find_sampler
from fastsd_lib.webui.a1111 import Ordered
from fastsd_lib.webui.a1111_grid import Drawn, by_cell, failures, grids
from fastsd_lib.webui.a1111_models import Img2ImgBody
from fastsd_lib.webui.a1111_pictures import file_bytes, in_base64
from fastsd_lib.webui.context import ApiContext

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastsd_lib.generation.engine import GeneratedImage
    from fastsd_lib.generation.jobs import Job

_PICTURE_FIELDS = ("init_images", "mask", "firstpass_image", "latent_mask")
LONGEST_ECHO = 4000  # letters of a text in `parameters`; longer ones are pictures


@dataclass(frozen=True)
class Model:
    """What the answer says of the model that drew."""

    name: str
    hash: str


@dataclass(frozen=True)
class Finished:
    """Pictures with their infotexts: the grids where there are any, then the pictures; and what is told of them."""

    shown: list[tuple[Image, str]]
    maps: list[Image]  # what the ControlNet units saw
    info: dict[str, Any]
    files: list[Path]  # where they were saved, the grids last; none when they were not


def answer_of(
    ordered: Ordered, pictures: list[GeneratedImage], context: ApiContext, jobs: Sequence[Job] = ()
) -> dict[str, Any]:
    """The body of the answer, its pictures in the order of `Finished` and then the maps. Codes pictures: not for the
    thread that answers everybody.
    """
    finished = finish(ordered, pictures, context, jobs)
    sent = []
    if ordered.body.send_images:
        sent = [in_base64(image, ordered.settings, text) for image, text in finished.shown]
        sent += [in_base64(image, ordered.settings) for image in finished.maps]
    return {
        "images": sent,
        "parameters": _echo(ordered.body),
        "info": json.dumps(finished.info, ensure_ascii=False, default=str),
    }


def finish(
    ordered: Ordered, pictures: list[GeneratedImage], context: ApiContext, jobs: Sequence[Job] = ()
) -> Finished:
    """The pictures with all that belongs to them. They are saved where that is asked, and noted in the history of the
    `jobs` that drew them.
    """
    if ordered.plot is not None and jobs:
        ordered, jobs = by_cell(ordered, jobs)
        pictures = [picture for job in jobs for picture in job.pictures]
    drawn = _drawn(ordered, pictures, context, jobs)
    texts = [one.text for one in drawn]
    together = grids(ordered, drawn)
    warnings, files = [*ordered.warnings, *failures(ordered, jobs)], []
    if ordered.body.save_images:
        files, told = _save(context, ordered, pictures, texts, together)
        warnings += told
        _note_files(context, jobs, files)
    shown = list(together)
    if ordered.plot is None or ordered.plot.sends_pictures:
        shown += [(one.image, text) for one, text in zip(pictures, texts, strict=True)]
    model = _model(pictures[0].record["model"] if pictures else ordered.orders[0].model, context)
    info = _info(ordered, pictures, [text for _, text in shown], model, len(together), warnings)
    return Finished(shown, _maps(pictures, ordered.maps_sent_back), info, files)


def _model(name: str, context: ApiContext) -> Model:
    found = context.service.shelf.find(name)
    return Model(found.name, found.short_hash)


def _drawn(
    ordered: Ordered, pictures: list[GeneratedImage], context: ApiContext, jobs: Sequence[Job]
) -> list[Drawn]:
    """The pictures with the hash of the model in their records, if they do not say it, and the VAE that was asked for."""
    places = [at for at, job in enumerate(jobs) for _ in job.pictures] if jobs else [0] * len(pictures)
    models: dict[str, Model] = {}
    drawn = []
    for picture, place in zip(pictures, places, strict=True):
        record = dict(picture.record)
        if not record.get("model_hash"):
            name = record["model"]
            models.setdefault(name, _model(name, context))
            record["model_hash"] = models[name].hash
        record["vae"] = record.get("vae") or ordered.orders[place].vae or None
        drawn.append(Drawn(picture.image, record, ordered.cells[place] if ordered.cells else 0))
    return drawn


def _maps(pictures: list[GeneratedImage], sent_back: list[bool]) -> list[Image]:
    """What the ControlNet units saw, the same for all pictures; those of units that want it."""
    maps = pictures[0].control_maps if pictures else ()
    return [one for one, wanted in zip(maps, sent_back, strict=False) if wanted]


def _echo(body: Any) -> dict[str, Any]:
    """The request as it was understood, without the pictures in it unless they are asked for."""
    echo = body.model_dump()
    if not (isinstance(body, Img2ImgBody) and body.include_init_images):
        for name in _PICTURE_FIELDS:
            if name in echo:
                echo[name] = None
    echo["alwayson_scripts"] = _without_pictures(echo["alwayson_scripts"])
    return echo


def _without_pictures(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_pictures(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_pictures(item) for item in value]
    return None if isinstance(value, str) and len(value) > LONGEST_ECHO else value


def _info(
    ordered: Ordered,
    pictures: list[GeneratedImage],
    texts: list[str],
    model: Model,
    index_of_first_image: int,
    warnings: list[str],
) -> dict[str, Any]:
    body, first = ordered.body, ordered.first
    width_px, height_px = first.width_px, first.height_px
    if pictures:
        record = pictures[0].record
        width_px, height_px = record["width_px"], record["height_px"]
        warnings = list(dict.fromkeys([*warnings, *record.get("warnings", [])]))
    each = [(order.request, number) for order in ordered.orders for number in range(order.request.count)]
    varied = first.variation_strength > 0
    used_strength = first.init is not None or first.hires is not None
    return {
        "prompt": first.prompt,
        "all_prompts": [request.prompt for request, _ in each],
        "negative_prompt": first.negative_prompt,
        "all_negative_prompts": [request.negative_prompt for request, _ in each],
        "seed": first.seed,
        "all_seeds": [request.seed + (0 if varied else number) for request, number in each],
        "subseed": body.subseed,
        "all_subseeds": [
            request.variation_seed + number if varied else body.subseed + place
            for place, (request, number) in enumerate(each)
        ],
        "subseed_strength": first.variation_strength,
        "width": width_px,
        "height": height_px,
        "sampler_name": SAMPLERS[find_sampler(first.sampler)[0]].label,
        "cfg_scale": body.cfg_scale,
        "steps": first.inference_steps,
        "batch_size": body.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": model.name,
        "sd_model_hash": model.hash,
        "sd_vae_name": ordered.orders[0].vae or None,
        "sd_vae_hash": None,
        "seed_resize_from_w": body.seed_resize_from_w,
        "seed_resize_from_h": body.seed_resize_from_h,
        "denoising_strength": body.denoising_strength if used_strength else None,
        "extra_generation_params": pictures[0].record.get("extra_parameters", {}) if pictures else {},
        "index_of_first_image": index_of_first_image,
        "infotexts": texts,
        "styles": body.styles,
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        "clip_skip": first.clip_skip,
        "is_using_inpainting_conditioning": False,
        "version": VERSION,
        "warnings": warnings,
    }


# ------------------------------------------------------------------ on disk


def _save(
    context: ApiContext,
    ordered: Ordered,
    pictures: list[GeneratedImage],
    texts: list[str],
    together: Sequence[tuple[Image, str]],
) -> tuple[list[Path], list[str]]:
    """Save under names of our own making: the files, the grids last; and what could not be done."""
    if context.pictures_dir is None:
        return [], ["save_images: this server was started without a folder for pictures; nothing was saved"]
    settings = ordered.settings
    kind = ordered.orders[0].kind
    files = []
    if settings["samples_save"] and not ordered.body.do_not_save_samples:
        for picture, text in zip(pictures, texts, strict=True):
            data = file_bytes(picture.image, settings, text)
            ending = settings["samples_format"]
            files.append(save_new(context.pictures_dir, f"{kind}-images", f"-{picture.seed}", data, ending))
    for grid, text in together if settings["grid_save"] and not ordered.body.do_not_save_grid else ():
        data = file_bytes(grid, settings, text, grid=True)
        files.append(save_new(context.pictures_dir, f"{kind}-grids", "-grid", data, settings["grid_format"]))
    return files, []


def _note_files(context: ApiContext, jobs: Sequence[Job], files: list[Path]) -> None:
    """To each job as many as it drew, in order; what is left over, grids, to the first one."""
    left = list(files)
    counts = [len(job.pictures) for job in jobs]
    if len(left) < sum(counts):  # the pictures themselves were not saved
        counts = [0 for _ in counts]
    own = [[left.pop(0) for _ in range(count)] for count in counts]
    if own:
        own[0] += left
    for job, saved in zip(jobs, own, strict=True):
        if saved:
            context.service.note_files(job, saved)


def save_new(pictures_dir: Path, kind: str, mark: str, data: bytes, ending: str) -> Path:
    """Save a picture as A1111 names them, <kind>/<day>/<number><mark>.<ending>, over no other one."""
    return _write(pictures_dir / kind / time.strftime("%Y-%m-%d"), mark, data, ending)


def _write(folder: Path, mark: str, data: bytes, ending: str) -> Path:
    """The next free number in the folder; taken by making the file, so that no two writers get the same."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [int(path.name[:5]) for path in folder.glob("[0-9][0-9][0-9][0-9][0-9]-*")]
    number = max(numbers, default=-1) + 1
    while True:
        path = folder / f"{number:05d}{mark}.{ending}"
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            number += 1
            continue
        with atomic_path(path) as scratch:
            scratch.write_bytes(data)
        return path
