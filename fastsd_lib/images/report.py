"""What became of the photos that somebody added."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Rejected:
    """One source that was not taken. `name` and `reason` are safe to print, `code` is for programs."""

    name: str
    code: str
    reason: str


@dataclass(frozen=True)
class PhotoNote:
    """Something to know about a photo that was taken, or that was here before."""

    name: str
    code: str  # "duplicate", "near_duplicate", "changed", "caption", "not_entered"
    text: str


@dataclass(frozen=True)
class PhotoReport:
    """Every source is in exactly one of: copied, here before, a duplicate (a note), refused, ignored junk."""

    accepted: tuple[Path, ...] = ()  # the new copies
    rejected: tuple[Rejected, ...] = ()
    already_here: tuple[Path, ...] = ()  # copies of earlier calls whose source was offered again
    notes: tuple[PhotoNote, ...] = ()
    captions: int = 0  # caption files written
    ignored: int = 0  # Thumbs.db, .DS_Store, .ipynb_checkpoints and their like

    def lines(self) -> list[str]:
        """One sentence, then one line for each problem."""
        parts = [f"{_count(len(self.accepted), 'photo')} added"]
        parts += [f"{len(self.already_here)} already here"] if self.already_here else []
        parts += [f"{_count(self.captions, 'caption')} read"] if self.captions else []
        parts += [f"{len(self.rejected)} refused"] if self.rejected else []
        parts += [f"{_count(self.ignored, 'junk file')} ignored"] if self.ignored else []
        refusals = [f"  refused: {one.reason}" for one in self.rejected]
        return [", ".join(parts) + ".", *refusals, *(f"  note: {one.name}: {one.text}" for one in self.notes)]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
