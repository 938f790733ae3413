"""DreamBooth, one function per notebook step: photos in, a personal model out.

Each step can run again: what is done already is found on disk and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastsd_lib.core.config import load_config, save_config
from fastsd_lib.core.errors import UserError, require
from fastsd_lib.core.file_kinds import list_photos
from fastsd_lib.core.files import fingerprint, plain_disk_errors, read_json
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.environment.hosts import default_root
from fastsd_lib.models import registry
from fastsd_lib.sessions import session as sessions
from fastsd_lib.sessions.photos import photos
from fastsd_lib.sessions.session import Session
from fastsd_lib.training.config import DreamBoothConfig
from fastsd_lib.workflows.samples import sample_photos, sample_subject

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastsd_lib.formats.parts import Parts
    from fastsd_lib.generation.engine import Engine
    from fastsd_lib.images.crop import CropBox
    from fastsd_lib.images.store import PhotoReport
    from fastsd_lib.training.checkpoint import Checkpoint
    from fastsd_lib.training.training_set import TrainingSet

CLASS_BATCH = 16  # class images drawn at once, and lost at most when the runtime dies


def open_session(name: str, root: str | Path | None = None, create_if_missing: bool = True) -> Session:
    """The session `name` below `root` (Drive on Colab, ~/fastsd elsewhere), made if it is missing."""
    place = Path(root).expanduser() if root else default_root()
    if create_if_missing:
        name = sessions.create_session(place, name).name
    return sessions.open_session(place, name)


def add_photos(
    session: Session, sources: str | Path | Iterable[str | Path], report: Report = silent
) -> PhotoReport:
    """Copy photos (files, folders, zips) into the session; the originals are not touched."""
    from fastsd_lib.images.store import add_photos as store_photos

    listed = [sources] if isinstance(sources, (str, Path)) else list(sources)
    outcome = store_photos(
        [Path(one).expanduser() for one in listed], session.instance_images, session.captions, report
    )
    sessions.record(session, "photos added", accepted=len(outcome.accepted), rejected=len(outcome.rejected))
    return outcome


def crop_photos(session: Session, report: Report = silent) -> dict[str, CropBox]:
    """Where each photo is cropped, by file name; boxes set by hand stay."""
    from fastsd_lib.images.crop import crop_photos as find_crops

    return find_crops(session.crops_file, photos(session), report)


def preview_crops(session: Session, size_px: int = 192) -> Path:
    """A picture of every photo as training will see it: samples/crops.png."""
    from fastsd_lib.core.files import atomic_path
    from fastsd_lib.images.crop import crop_to
    from fastsd_lib.images.grid import contact_sheet
    from fastsd_lib.images.load import open_photo

    crops = crop_photos(session)
    cells = [crop_to(open_photo(photo), crops[photo.name], size_px) for photo in photos(session)]
    if not cells:
        raise UserError(
            f"Session {session.name!r} has no photos.",
            fix=f"python3 -m fastsd_lib session add-images {session.name} FOLDER",
        )
    sheet = contact_sheet(
        cells,
        labels=[photo.stem[:24] for photo in photos(session)],
        cell_px=size_px,
        title="As training sees them",
    )
    with atomic_path(session.samples / "crops.png") as scratch:
        sheet.save(scratch)
    return session.samples / "crops.png"


def caption_photos(session: Session, instance_prompt: str, overwrite: bool = False) -> dict[str, str]:
    """Give every photo without a caption the one its file name offers; returns photo name -> whole training prompt."""
    from fastsd_lib.images import captions

    prompts = {}
    for photo in photos(session):
        if overwrite or not captions.has_caption(session.captions, photo):
            captions.write_caption(session.captions, photo, captions.propose_caption(photo, instance_prompt))
        prompts[photo.name] = captions.training_prompt(
            instance_prompt, captions.read_caption(session.captions, photo)
        )
    return prompts


def base_model(name_or_path: str | Path = registry.EMBEDDED) -> ModelFiles:
    """The model to start from: "embedded", a Hugging Face id, a Diffusers folder or a single file."""
    return registry.base_model(name_or_path)


def recipe_for(base: ModelFiles, instance_prompt: str, class_prompt: str = "") -> DreamBoothConfig:
    """Settings that suit the base model's size: the classic ones for Stable Diffusion, short ones for the embedded model."""
    if base.path != registry.EMBEDDED_FOLDER:
        return DreamBoothConfig(instance_prompt, class_prompt)
    recipe = load_config(DreamBoothConfig, registry.EMBEDDED_FOLDER / "recipe.yaml")
    return replace(recipe, instance_prompt=instance_prompt, class_prompt=class_prompt)


def planned(
    session: Session,
    recipe: Path | None = None,
    resume: bool = False,
    model: str | None = None,
    choices: Iterable[str] = (),
) -> tuple[str, DreamBoothConfig]:
    """Base model and settings of the next run: those asked for, else those of the session's last run.

    `choices` are `name=value` words that change the recipe.
    """
    base = model or sessions.read_manifest(session).get("base_model")
    if not base:
        raise UserError(
            f"No base model was chosen for session {session.name!r} yet.",
            fix="add --model embedded (tiny, comes along, no download) or --model 1.5 (Stable Diffusion 1.5).",
        )
    if resume and not sessions.read_manifest(session).get("base_model"):
        raise UserError(
            f"Session {session.name!r} has no run to resume.",
            fix=f"train it first: python3 -m fastsd_lib train {session.name} --model {base}",
        )
    source = recipe or session.recipe
    if not source.is_file():
        raise UserError(f"There is no recipe {source}.", fix="name a recipe.yaml, or leave --recipe out.")
    return base, load_config(DreamBoothConfig, source, choices)


def make_class_images(
    session: Session, base: ModelFiles, config: DreamBoothConfig, report: Report = silent
) -> int:
    """Fill class_images/ with the base model's own pictures of the class; returns how many training will use.

    Pictures that the user put there count first. Ours carry the fingerprint of what made them in their names,
    so an interrupted call makes only what is missing and another prompt makes its own.
    """
    if not config.prior_preservation:
        return 0
    wanted = _class_images(session, base, config)
    missing = [path for path in wanted if not path.is_file()]
    if missing:
        _draw_class_images(session, base, config, missing, report)
        sessions.record(session, "class images made", count=len(missing), prompt=config.class_prompt)
    return len(wanted)


def train(
    session: Session,
    base: ModelFiles,
    config: DreamBoothConfig,
    *,
    report: Report = silent,
    should_stop: Callable[[], bool] | None = None,
    resume: bool = True,
) -> Checkpoint:
    """Train, or continue what the session already holds, or return the finished run of these very settings.

    `resume=False` starts over; checkpoints of the earlier run are replaced as the new one writes its own.
    """
    require("diffusers", group="train")
    _refuse_conflicts(config)
    with plain_disk_errors(f"write to session {session.name!r}"):
        make_class_images(session, base, config, report)
        return _train(session, base, config, report, should_stop, resume)


def _train(
    session: Session,
    base: ModelFiles,
    config: DreamBoothConfig,
    report: Report,
    should_stop: Callable[[], bool] | None,
    resume: bool,
) -> Checkpoint:
    from fastsd_lib.training import checkpoint as store
    from fastsd_lib.training import latents, trainer

    folder = _as_folder(session, base)
    device = _device()
    training_set = _training_set(session, base, config)
    base_print = _model_fingerprint(folder)
    run = trainer.run_fingerprint(base_print, training_set, config)
    if not resume:
        store.discard_run(session.checkpoints, run)
    held, _ = store.newest_intact(session.checkpoints, run)
    if held and held.finished:
        report(ProgressEvent("U-Net", config.unet_steps, config.unet_steps, {"from": held.path.name}))
        return held
    save_config(config, session.recipe)
    sessions.set_facts(session, base_model=_base_name(base))
    sessions.record(
        session,
        "training started" if held is None else "training resumed",
        run=run,
        from_step=held.step if held else 0,
    )
    parts = _load_parts(folder, device)
    cache = latents.load_or_encode(
        session.path / "cache" / "latents.safetensors",
        parts.vae,
        base_print,
        training_set,
        config.resolution_px,
        config.flip,
        report,
    )
    checkpoint = trainer.train(
        parts,
        cache,
        training_set,
        config,
        run=run,
        checkpoints=session.checkpoints,
        logs=session.logs,
        device=device,
        report=report,
        should_stop=should_stop,
        draw_samples=_sampler(session, config),
    )
    sessions.record(
        session,
        "training finished" if checkpoint.finished else "training stopped",
        run=run,
        step=checkpoint.step,
    )
    return checkpoint


def export(session: Session, base: ModelFiles, checkpoint: Checkpoint, report: Report = silent) -> ModelFiles:
    """The trained model as one `.safetensors` for any web UI, with the recipe in its metadata."""
    import tempfile

    from fastsd_lib.formats.single_file import export_single_file

    with tempfile.TemporaryDirectory(prefix="fastsd-export-") as scratch:
        folder = _assemble(_as_folder(session, base), checkpoint, Path(scratch) / session.name)
        recipe = read_json(checkpoint.path / "manifest.json")["config"]
        made = export_single_file(
            folder,
            session.model_file,
            dtype="fp16",
            metadata={"fastsd.recipe": recipe, "fastsd.step": checkpoint.step},
            report=report,
        )
    sessions.record(session, "exported", file=made.path.name, step=checkpoint.step)
    return made


def draw(model: ModelFiles, prompt: str, seeds: Iterable[int]) -> list[Image]:
    """One picture per seed, at the model's own size and guidance."""
    from fastsd_lib.generation.engine import load_engine

    return _draw_seeds(load_engine(model), prompt, list(seeds))


def compare(
    session: Session,
    base: ModelFiles,
    trained: ModelFiles,
    config: DreamBoothConfig,
    prompts: Iterable[str] | None = None,
    seeds: Iterable[int] = (1, 2, 3, 4),
    report: Report = silent,
) -> Path:
    """A grid with the same prompts and seeds before and after: samples/before_after.png."""
    from fastsd_lib.core.files import atomic_path
    from fastsd_lib.generation.engine import load_engine
    from fastsd_lib.images.crop import crop_to
    from fastsd_lib.images.grid import contact_sheet
    from fastsd_lib.images.load import open_photo

    seeds = list(seeds)
    asked = (
        list(prompts)
        if prompts is not None
        else [config.instance_prompt, *([config.class_prompt] if config.prior_preservation else [])]
    )
    cell_px = max(160, min(256, config.resolution_px))
    crops = crop_photos(session)
    cells = [
        crop_to(open_photo(photo), crops[photo.name], cell_px) for photo in photos(session)[: len(seeds)]
    ]
    cells += [None] * (len(seeds) - len(cells))
    labels = ["your photos"]
    for when, model in (("before", base), ("after", trained)):
        engine = load_engine(model)
        for number, prompt in enumerate(asked):
            report(ProgressEvent(f"pictures {when}", number, len(asked)))
            cells += _draw_seeds(engine, prompt, seeds)
            labels.append(f"{when}: {prompt}")
        report(ProgressEvent(f"pictures {when}", len(asked), len(asked)))
    sheet = contact_sheet(
        cells,
        row_labels=labels,
        columns=len(seeds),
        cell_px=cell_px,
        title=session.name,
    )
    with atomic_path(session.samples / "before_after.png") as scratch:
        sheet.save(scratch)
    return session.samples / "before_after.png"


def verify(session: Session) -> list[str]:
    """One line per fault of the session's files, checkpoints read to the last byte; nothing is changed."""
    from fastsd_lib.sessions.verify import verify as verify_files
    from fastsd_lib.training import checkpoint as store

    lines = [f"{finding.file} {finding.problem} -> {finding.fix}" for finding in verify_files(session)]
    for held in store.list_checkpoints(session.checkpoints):
        damage = store.find_damage(held.path)
        if damage:
            lines.append(
                f"checkpoints/{held.path.name}: {damage} -> training passes it over; delete it to save space"
            )
    return lines


def convert(source: Path, target: Path, dtype: str | None = None, report: Report = silent) -> ModelFiles:
    """Diffusers folder -> single file, or back, by what `source` is and how `target` is named."""
    from fastsd_lib.formats.single_file import export_single_file, import_single_file
    from fastsd_lib.models.identify import identify

    found = identify(source).model_files
    if found.layout == "diffusers":
        return export_single_file(found, target, dtype=dtype, report=report)
    return import_single_file(source, target, config_from=_configs_for(source), report=report)


# ------------------------------------------------------------------ introductions between rooms


def _class_images(session: Session, base: ModelFiles, config: DreamBoothConfig) -> list[Path]:
    """The user's own class images, then as many of ours as are still needed, whether they exist yet or not."""
    given = [path for path in list_photos(session.class_images) if not path.name.startswith("class-")]
    key = fingerprint(
        [
            _model_fingerprint(_as_folder(session, base)),
            config.class_prompt,
            config.resolution_px,
            config.seed,
        ]
    )[:8]
    needed = max(0, config.class_images - len(given))
    return given[: config.class_images] + [
        session.class_images / f"class-{key}-{number:04d}.png" for number in range(needed)
    ]


def _draw_class_images(
    session: Session, base: ModelFiles, config: DreamBoothConfig, missing: list[Path], report: Report
) -> None:
    from fastsd_lib.generation.engine import load_engine
    from fastsd_lib.generation.infotext import save_picture
    from fastsd_lib.generation.request import GenerationRequest

    engine = load_engine(base)
    report(ProgressEvent("class images", 0, len(missing)))
    for start in range(0, len(missing), CLASS_BATCH):
        batch = missing[start : start + CLASS_BATCH]
        # A picture's seed is its number, so that one that was lost is made again as it was.
        numbers = [int(path.stem.rsplit("-", 1)[1]) for path in batch]
        for run in _consecutive(numbers):
            request = GenerationRequest(
                config.class_prompt,
                seed=(config.seed + 100_000 + run[0]) % 2**32,
                count=len(run),
                width_px=config.resolution_px,
                height_px=config.resolution_px,
            )
            for number, picture in zip(run, engine.generate(request), strict=True):
                save_picture(picture, batch[numbers.index(number)])
        report(ProgressEvent("class images", start + len(batch), len(missing)))


def _draw_seeds(engine: Engine, prompt: str, seeds: list[int]) -> list[Image]:
    """Seeds in a row are drawn as one batch; each picture is the one its seed gives alone."""
    from fastsd_lib.generation.request import GenerationRequest

    requests = [GenerationRequest(prompt, seed=run[0], count=len(run)) for run in _consecutive(seeds)]
    return [picture.image for request in requests for picture in engine.generate(request)]


def _consecutive(numbers: list[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def _training_set(session: Session, base: ModelFiles, config: DreamBoothConfig) -> TrainingSet:
    from fastsd_lib.images.instance import InstanceImage
    from fastsd_lib.training.training_set import TrainingSet

    crops, prompts = crop_photos(session), caption_photos(session, config.instance_prompt)
    instances = tuple(
        InstanceImage(photo, prompts[photo.name], crops[photo.name]) for photo in photos(session)
    )
    class_images = tuple(_class_images(session, base, config)) if config.prior_preservation else ()
    return TrainingSet(instances, class_images, config.class_prompt)


def _sampler(session: Session, config: DreamBoothConfig) -> Callable[[Parts, int], tuple[Path, ...]]:
    """Draws the sample prompt with fixed seeds on the live weights, into samples/."""

    def draw_samples(parts: Parts, step: int) -> tuple[Path, ...]:
        from fastsd_lib.generation import engine
        from fastsd_lib.generation.infotext import save_picture
        from fastsd_lib.generation.request import GenerationRequest

        prompt = config.sample_prompt or config.instance_prompt
        request = GenerationRequest(
            prompt,
            seed=config.seed,
            count=config.sample_count,
            width_px=config.resolution_px,
            height_px=config.resolution_px,
        )
        pictures = engine.draw(parts, request)
        return tuple(
            save_picture(picture, session.samples / f"step_{step:06d}_{i + 1}.png")
            for i, picture in enumerate(pictures)
        )

    return draw_samples


def _load_parts(folder: ModelFiles, device: str) -> Parts:
    import torch

    from fastsd_lib.formats.parts import load_parts

    return load_parts(folder, torch.device(device), torch.float32)


def _as_folder(session: Session, base: ModelFiles) -> ModelFiles:
    """The base model as a Diffusers folder; a single file is unpacked once, beside the session's cache."""
    if base.layout == "diffusers":
        return base
    from fastsd_lib.formats.single_file import import_single_file

    stat = base.path.stat()
    folder = session.path / "cache" / f"base-{fingerprint([str(base.path), stat.st_size, stat.st_mtime_ns])}"
    if (folder / "model_index.json").is_file():
        return ModelFiles(base.family, "diffusers", folder)
    return import_single_file(base.path, folder, config_from=_configs_for(base.path))


def _configs_for(file: Path) -> Path | None:
    """Where a single file's configs come from: itself, else those of stock Stable Diffusion 1.5."""
    from fastsd_lib.formats.single_file import carries_configs

    return None if carries_configs(file) else registry.stock_configs()


def _assemble(base: ModelFiles, checkpoint: Checkpoint, folder: Path) -> ModelFiles:
    """The base model's folder with the checkpoint's weights in it; what did not change is linked, not copied."""
    import shutil

    from fastsd_lib.training.checkpoint import PARTS

    trained = [part for part in PARTS if (checkpoint.path / f"{part}.safetensors").is_file()]

    def unwanted(directory: str, names: list[str]) -> set[str]:
        replaced = Path(directory).name in trained
        return {
            name
            for name in names
            if name.endswith((".md", ".bin"))
            or name == "judge.safetensors"
            or (replaced and "safetensors" in name)
        }

    shutil.copytree(
        base.path,
        folder,
        ignore=unwanted,
        copy_function=lambda source, target: Path(target).symlink_to(Path(source).resolve()),
    )
    for part in trained:
        weights = "model.safetensors" if part == "text_encoder" else "diffusion_pytorch_model.safetensors"
        (folder / part / weights).symlink_to((checkpoint.path / f"{part}.safetensors").resolve())
    return ModelFiles(base.family, "diffusers", folder)


def _base_name(base: ModelFiles) -> str:
    return registry.EMBEDDED if base.path == registry.EMBEDDED_FOLDER else str(base.path)


def _model_fingerprint(model: ModelFiles) -> str:
    """Of names, sizes and the first and last mebibyte of every weight file: quick, and different for different weights."""
    import hashlib

    rows = []
    for path in sorted(model.path.rglob("*.safetensors")):
        size = path.stat().st_size
        with path.open("rb") as handle:
            head = handle.read(1 << 20)
            handle.seek(max(0, size - (1 << 20)))
            rows.append(
                [str(path.relative_to(model.path)), size, hashlib.sha256(head + handle.read()).hexdigest()]
            )
    return fingerprint(rows)


def _refuse_conflicts(config: DreamBoothConfig) -> None:
    problems = config.conflicts()
    if problems:
        raise UserError(
            "These settings do not go together: " + "; ".join(problems) + ".",
            fix="change them in the recipe and start again.",
        )


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


__all__ = [
    "add_photos",
    "base_model",
    "caption_photos",
    "compare",
    "convert",
    "crop_photos",
    "draw",
    "export",
    "make_class_images",
    "open_session",
    "photos",
    "planned",
    "preview_crops",
    "recipe_for",
    "sample_photos",
    "sample_subject",
    "train",
    "verify",
]
