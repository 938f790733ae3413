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

if TYPE_CHECKING:
    from fastsd_lib.formats.parts import Parts
    from fastsd_lib.training.checkpoint import Checkpoint
    from fastsd_lib.training.training_set import TrainingSet


def run_training(
    session: Session,
    base: ModelFiles,
    config: DreamBoothConfig,
    training_set: TrainingSet,
    report: Report,
    should_stop: Callable[[], bool] | None,
    resume: bool,
) -> Checkpoint:
    from fastsd_lib.training import checkpoint as store
    from fastsd_lib.training import latents, trainer

    folder = model_folders.as_folder(session, base)
    device = _device()
    base_print = model_folders.weights_fingerprint(folder)
    run = trainer.run_fingerprint(base_print, training_set, config)
    if not resume:
        store.discard_run(session.checkpoints, run)
    held, _ = store.newest_intact(session.checkpoints, run)
    if held and held.finished:
        report(ProgressEvent("U-Net", config.unet_steps, config.unet_steps, {"from": held.path.name}))
        return held
    save_config(config, session.recipe)
    sessions.set_facts(session, base_model=model_folders.name_of(base))
    sessions.record(
        session,
        "training started" if held is None else "training resumed",
        run=run,
        from_step=held.step if held else 0,
    )
    parts = model_folders.load(folder, device)
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
