"""One training run on a session: found on disk, continued or begun, and written down."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fastsd_lib.core.config import save_config
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.core.progress import ProgressEvent, Report
from fastsd_lib.sessions import session as sessions
from fastsd_lib.sessions.session import Session
from fastsd_lib.training.config import DreamBoothConfig
from fastsd_lib.workflows import model_folders
from fastsd_lib.workflows import workbench as workbenches
from fastsd_lib.workflows.workbench import Workbench

if TYPE_CHECKING:
    from fastsd_lib.formats.parts import Parts
    from fastsd_lib.sessions.carry import Carrier
    from fastsd_lib.sessions.checkpoints import Checkpoint
    from fastsd_lib.training.training_set import TrainingSet


def run_training(
    bench: Workbench,
    base: ModelFiles,
    config: DreamBoothConfig,
    training_set: TrainingSet,
    report: Report,
    should_stop: Callable[[], bool] | None,
    resume: bool,
) -> Checkpoint:
    """Train, or continue the run that these very settings began, or find it finished."""
    from fastsd_lib.sessions import checkpoints
    from fastsd_lib.training.stages import run_fingerprint

    folder = model_folders.as_folder(base, bench.cache)
    base_print = model_folders.weights_fingerprint(folder)
    run = run_fingerprint(base_print, training_set, config)
    if not resume:
        for place in bench.checkpoint_folders:
            checkpoints.discard_run(place, run)
    with workbenches.carrying(bench, config, report) as carrier:
        held, _ = workbenches.newest(bench, run)
        if held and held.finished:
            report(ProgressEvent("U-Net", config.unet_steps, config.unet_steps, {"from": held.path.name}))
            return held
        _note_start(bench.session, base, config, run, held)
        checkpoint = _train(
            bench, folder, base_print, config, training_set, run, report, should_stop, carrier
        )
    event = "training finished" if checkpoint.finished else "training stopped"
    sessions.record(bench.session, event, run=run, step=checkpoint.step)
    return checkpoint


def _note_start(
    session: Session, base: ModelFiles, config: DreamBoothConfig, run: str, held: Checkpoint | None
) -> None:
    save_config(config, session.recipe)
    sessions.set_facts(session, base_model=model_folders.name_of(base))
    event = "training started" if held is None else "training resumed"
    sessions.record(session, event, run=run, from_step=held.step if held else 0)


def _train(
    bench: Workbench,
    folder: ModelFiles,
    base_print: str,
    config: DreamBoothConfig,
    training_set: TrainingSet,
    run: str,
    report: Report,
    should_stop: Callable[[], bool] | None,
    carrier: Carrier | None,
) -> Checkpoint:
    from fastsd_lib.training import latents, trainer

    device = _device()
    parts = model_folders.load(folder, device)
    cache = latents.load_or_encode(
        bench.cache / "latents.safetensors",
        parts.vae,
        base_print,
        training_set,
        config.resolution_px,
        config.flip,
        report,
    )
    return trainer.train(
        parts,
        cache,
        training_set,
        config,
        run=run,
        checkpoints=bench.here.checkpoints,
        also=bench.checkpoint_folders[1:],
        logs=bench.here.logs,
        device=device,
        report=workbenches.told_what_is_safe(report, carrier),
        should_stop=should_stop,
        draw_samples=_sampler(bench.here, config),
        on_saved=carrier.submit if carrier else None,
    )


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


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
