"""Pictures as files: what `fastsd generate` leaves in its folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastsd_lib.core.files import atomic_path
from fastsd_lib.core.progress import Report, silent
from fastsd_lib.generation.request import GenerationRequest

if TYPE_CHECKING:
    from fastsd_lib.generation.engine import Engine


def draw_to_folder(
    engine: Engine,
    requests: Iterable[GenerationRequest],
    out_dir: Path,
    ending: str = ".png",
    report: Report = silent,
) -> Iterator[Path]:
    """Draw and save, request by request; yields each new file, with its full record inside. Nothing is overwritten.

    `ending`: .png, .jpg, .webp or .avif. Raises UserError for what cannot be drawn; what was drawn before stays.
    """
    from fastsd_lib.generation.infotext import save_picture

    number = _last_number(out_dir)
    for request in requests:
        for picture in engine.generate(request, report):
            number += 1
            yield save_picture(picture, out_dir / f"{number:05d}-seed{picture.seed}{ending}")


def save_grid(files: Sequence[Path], columns: int | None = None) -> Path:
    """All pictures on one page, as grid-NNNNN.png beside the last one."""
    from PIL import Image

    from fastsd_lib.images.grid import contact_sheet

    pictures = [Image.open(file).convert("RGB") for file in files]
    sheet = contact_sheet(pictures, columns=columns, cell_px=max(160, min(max(pictures[0].size), 512)))
    path = files[-1].with_name(f"grid-{files[-1].name[:5]}.png")
    with atomic_path(path) as scratch:
        sheet.save(scratch)
    return path


def _last_number(folder: Path) -> int:
    return max((int(path.name[:5]) for path in folder.glob("[0-9][0-9][0-9][0-9][0-9]-*")), default=0)
