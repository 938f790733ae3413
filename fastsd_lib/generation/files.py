"""Pictures as files: what `fastsd generate` does."""

from __future__ import annotations

from pathlib import Path

from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.core.progress import Report, silent
from fastsd_lib.generation.request import GenerationRequest


def generate_to_folder(
    model: ModelFiles,
    request: GenerationRequest,
    out_dir: Path,
    report: Report = silent,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    config_from: Path | None = None,
) -> list[Path]:
    """Draw and save; returns the new PNGs, each with its full record inside. Nothing is ever overwritten."""
    request.check()  # before torch takes its seconds
    from fastsd_lib.generation.engine import load_engine
    from fastsd_lib.generation.infotext import save_picture

    engine = load_engine(model, device, dtype, threads, config_from)
    pictures = engine.generate(request, report)
    first = _next_number(out_dir)
    return [
        save_picture(picture, out_dir / f"{first + number:05d}-seed{picture.seed}.png")
        for number, picture in enumerate(pictures)
    ]


def _next_number(folder: Path) -> int:
    numbers = [int(path.name[:5]) for path in folder.glob("[0-9][0-9][0-9][0-9][0-9]-*.png")]
    return max(numbers, default=0) + 1
