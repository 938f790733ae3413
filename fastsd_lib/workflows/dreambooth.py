"""DreamBooth, one function per notebook step: photos in, a personal model out.

Each step can run again: what is done already is found on disk and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastsd_lib.core.config import load_config
from fastsd_lib.core.errors import UserError, require
from fastsd_lib.core.files import plain_disk_errors
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.core.paths import expanded
from fastsd_lib.core.progress import ConsoleProgress, ProgressEvent, Report, silent
from fastsd_lib.environment.hosts import default_root
from fastsd_lib.models import registry
from fastsd_lib.models.fits import check_training
from fastsd_lib.models.identify import describe
from fastsd_lib.models.pieces import native_px_of
from fastsd_lib.sessions import session as sessions
from fastsd_lib.sessions.lock import session_lock
from fastsd_lib.sessions.photos import photos
from fastsd_lib.sessions.session import Session
from fastsd_lib.training.config import DreamBoothConfig
from fastsd_lib.workflows import class_images, file_links, model_folders, older_sessions
from fastsd_lib.workflows.samples import sample_photos, sample_subject
from fastsd_lib.workflows.training_run import run_training
from fastsd_lib.workflows.workbench import Workbench, deliver, workbench

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastsd_lib.images.crop import CropBox
    from fastsd_lib.images.store import PhotoReport
    from fastsd_lib.sessions.checkpoints import Checkpoint
    from fastsd_lib.training.training_set import TrainingSet

# Adapters start at nothing and bear far more than whole weights: diffusers' and kohya's examples use these.
LORA_RATES = {"unet_learning_rate": 1e-4, "text_encoder_learning_rate": 5e-5}


def open_session(name: str, root: str | Path | None = None, create_if_missing: bool = True) -> Session:
    """The session `name` below `root` (Drive on Colab, ~/fastsd elsewhere), made if it is missing."""
    place = expanded(root) if root else default_root()
    if create_if_missing:
        session = sessions.create_session(place, name)
        older_sessions.complete(session)
        name = session.name
    return sessions.open_session(place, name)


def add_photos(
    session: Session, sources: str | Path | Iterable[str | Path], report: Report = silent
) -> PhotoReport:
    """Copy photos (files, folders, zips) into the session; the originals are not touched."""
    from fastsd_lib.images.store import add_photos as store_photos

    listed = [sources] if isinstance(sources, (str, Path)) else list(sources)
    outcome = store_photos(
        [expanded(one) for one in listed], session.instance_images, session.captions, report
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


def base_model(
    name_or_path: str | Path = registry.EMBEDDED, root: Path | None = None, report: Report | None = None
) -> ModelFiles:
    """The model to start from: "embedded", a known name, a trained session, a Hugging Face id, a folder, file or link.

    Downloads use the user's token, also the one in token.txt below `root` (default: where sessions live). That a
    withdrawn model is taken from elsewhere is told to `report`, or else to the terminal.
    """
    home = root or default_root()
    checkpoints = home / "models" / "Stable-diffusion"
    return file_links.find_model(name_or_path, home, checkpoints, report or ConsoleProgress())


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
    older_sessions.complete(session)
    base = model or sessions.read_manifest(session).get("base_model")
    if not base:
        raise UserError(
            f"No base model was chosen for session {session.name!r} yet.",
            fix=older_sessions.go_on_from(session)
            or "add --model embedded (tiny, comes along, no download) or --model 1.5 (Stable Diffusion 1.5).",
        )
    if resume and not sessions.read_manifest(session).get("base_model"):
        raise UserError(
            f"Session {session.name!r} has no run to resume.",
            fix=f"train it first: python3 -m fastsd_lib train {session.name} --model {base}",
        )
    source = recipe or session.recipe
    if not source.is_file():
        raise UserError(f"There is no recipe {source}.", fix="name a recipe.yaml, or leave --recipe out.")
    if recipe or sessions.read_manifest(session).get("base_model"):
        return base, load_config(DreamBoothConfig, source, choices)
    return base, _first_recipe(session, base, choices)


def _first_recipe(session: Session, base: str, choices: Iterable[str]) -> DreamBoothConfig:
    """What suits the base model, but for what was changed in the session's own recipe, or is asked for now."""
    own = load_config(DreamBoothConfig, session.recipe, choices)
    named = [f"instance_prompt={own.instance_prompt}"]  # the template leaves it to be filled in
    plain = load_config(DreamBoothConfig, sessions.template_dir() / "recipe.yaml", named)
    changed = {
        field.name: getattr(own, field.name)
        for field in fields(own)
        if getattr(own, field.name) != getattr(plain, field.name)
    }
    suited = (
        recipe_for(base_model(base), own.instance_prompt, own.class_prompt)
        if base == registry.EMBEDDED
        else plain
    )
    rates = LORA_RATES if own.method == "lora" and base != registry.EMBEDDED else {}
    return replace(suited, **{**rates, **changed})


def make_class_images(
    session: Session,
    base: ModelFiles,
    config: DreamBoothConfig,
    report: Report = silent,
    should_stop: Callable[[], bool] | None = None,
) -> int:
    """Fill class_images/ with the base model's own pictures of the class; returns how many training will use."""
    with session_lock(session.path, "class images", _line_to(report)):
        cache = workbench(session).cache
        return len(class_images.make(session, base, config, cache, report, should_stop))


def train(
    session: Session,
    base: ModelFiles,
    config: DreamBoothConfig,
    *,
    report: Report = silent,
    should_stop: Callable[[], bool] | None = None,
    resume: bool = True,
    local_folder: Path | None = None,
) -> Checkpoint:
    """Train, or continue what the session already holds, or return the finished run of these very settings.

    `resume=False` starts over; checkpoints of the earlier run are replaced as the new one writes its own.
    A session on Drive is worked on in a folder of a local disk (or in `local_folder`), and its checkpoints are
    carried to the session in the background; the run ends when the last one is verified there. UserError when
    somebody else works on the session.
    """
    require("diffusers", group="train")
    _refuse_conflicts(config)
    _check_base(base, config, report)
    with (
        plain_disk_errors(f"write to session {session.name!r}"),
        session_lock(session.path, "training", _line_to(report)) as lock,
    ):

        def stopping() -> bool:  # a lost lock: another machine writes to this session now
            return bool(lock.lost or (should_stop and should_stop()))

        bench = workbench(session, local_folder)
        drawn = class_images.make(session, base, config, bench.cache, report, stopping)
        training_set = _training_set(session, config, drawn)
        trained = run_training(bench, base, config, training_set, report, stopping, resume)
        if lock.lost:
            raise UserError(
                f"{lock.lost} Training stopped; step {trained.step} is saved in {trained.path}.",
                fix="let one of the two go on; run this again here when the other has ended.",
            )
        return trained


def last_run(session: Session) -> str:
    """Fingerprint of the run that was trained last in this session; "" when none was."""
    history = sessions.read_manifest(session)["history"]
    runs = [
        entry["run"] for entry in history if str(entry.get("event")).startswith("training") and "run" in entry
    ]
    return runs[-1] if runs else ""


def newest_checkpoint(session: Session, local_folder: Path | None = None) -> Checkpoint:
    """The newest intact checkpoint of the last run, finished or not. UserError when there is none."""
    from fastsd_lib.sessions import checkpoints

    run = last_run(session)
    found = (
        checkpoints.newest_intact(workbench(session, local_folder).checkpoint_folders, run)[0]
        if run
        else None
    )
    if found is None:
        raise UserError(
            f"Session {session.name!r} holds nothing that was trained.",
            fix=f"train it first: python3 -m fastsd_lib train {session.name}",
        )
    return found


def export(
    session: Session,
    base: ModelFiles,
    checkpoint: Checkpoint,
    report: Report = silent,
    local_folder: Path | None = None,
) -> ModelFiles:
    """The trained model as one `.safetensors` for any web UI, with the recipe in its metadata.

    After a run with `method: lora` also its adapters alone, as NAME-lora.safetensors.
    """
    import tempfile

    from fastsd_lib.formats.single_file import export_single_file
    from fastsd_lib.training.checkpoint import LORA_FILE

    recipe = checkpoint.facts["config"]
    facts = {"fastsd.recipe": recipe, "fastsd.step": checkpoint.step}
    with (
        plain_disk_errors(f"export the model to session {session.name!r}"),
        session_lock(session.path, "export", _line_to(report)),
        tempfile.TemporaryDirectory(prefix="fastsd-export-") as scratch,
    ):
        bench = workbench(session, local_folder)
        base_folder = model_folders.as_folder(base, bench.cache)
        if (checkpoint.path / LORA_FILE).is_file():
            _export_lora(bench, checkpoint, recipe, facts)
        folder = model_folders.with_trained_parts(base_folder, checkpoint, Path(scratch) / session.name)
        made = export_single_file(folder, bench.here.model_file, dtype="fp16", metadata=facts, report=report)
        made = replace(made, path=deliver(bench, made.path))
    sessions.record(session, "exported", file=made.path.name, step=checkpoint.step)
    return made


def _export_lora(bench: Workbench, checkpoint: Checkpoint, recipe: dict, facts: dict) -> Path:
    from fastsd_lib.formats.lora_file import export_lora, lora_metadata
    from fastsd_lib.training.checkpoint import LORA_FILE

    metadata = lora_metadata(
        title=bench.session.name,
        rank=recipe["lora_rank"],
        alpha=recipe["lora_alpha"],
        side_px=recipe["resolution_px"],
        facts=facts,
    )
    made = export_lora(checkpoint.path / LORA_FILE, bench.here.lora_file, "fp16", metadata)
    return deliver(bench, made)


def draw(model: ModelFiles, prompt: str, seeds: Iterable[int]) -> list[Image]:
    """One picture per seed, at the model's own size and guidance."""
    from fastsd_lib.generation.engine import load_engine

    return class_images.draw_seeds(load_engine(model), prompt, list(seeds))


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
            cells += class_images.draw_seeds(engine, prompt, seeds)
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
    from fastsd_lib.sessions import checkpoints
    from fastsd_lib.sessions.verify import verify as verify_files

    lines = [f"{finding.file} {finding.problem} -> {finding.fix}" for finding in verify_files(session)]
    for held in checkpoints.list_checkpoints(session.checkpoints):
        damage = checkpoints.find_damage(held.path)
        if damage:
            lines.append(
                f"checkpoints/{held.path.name}: {damage} -> training passes it over; delete it to save space"
            )
    return lines


def convert(source: Path, target: Path, dtype: str | None = None, report: Report = silent) -> ModelFiles:
    """A whole model in another layout: `converting.convert`, which knows more choices and more kinds of files."""
    from fastsd_lib.formats.conversion import ConversionChoices
    from fastsd_lib.models.identify import identify
    from fastsd_lib.workflows import converting

    made = converting.convert(source, target, ConversionChoices(dtype), report)  # type: ignore[arg-type]
    return identify(made.path).model_files


def _line_to(report: Report) -> Callable[[str], None]:
    return lambda line: report(ProgressEvent("session", 1, 1, {"": line}))


def _training_set(session: Session, config: DreamBoothConfig, drawn: list[Path]) -> TrainingSet:
    from fastsd_lib.images.instance import InstanceImage
    from fastsd_lib.training.training_set import TrainingSet

    crops, prompts = crop_photos(session), caption_photos(session, config.instance_prompt)
    instances = tuple(
        InstanceImage(photo, prompts[photo.name], crops[photo.name]) for photo in photos(session)
    )
    return TrainingSet(instances, tuple(drawn), config.class_prompt)


def _refuse_conflicts(config: DreamBoothConfig) -> None:
    problems = config.conflicts()
    if problems:
        raise UserError(
            "These settings do not go together: " + "; ".join(problems) + ".",
            fix="change them in the recipe and start again.",
        )


def _check_base(base: ModelFiles, config: DreamBoothConfig, report: Report) -> None:
    """UserError for a model that is not trained here, with all that speaks against it; a warning is told."""
    described = describe(base.path)
    fit = check_training(described, config.resolution_px, native_px_of(described), name=str(base.path))
    if fit.enforced():
        report(ProgressEvent("base model", 1, 1, {"": fit.advice}))


__all__ = [
    "add_photos",
    "base_model",
    "caption_photos",
    "compare",
    "convert",
    "crop_photos",
    "draw",
    "export",
    "last_run",
    "make_class_images",
    "newest_checkpoint",
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
