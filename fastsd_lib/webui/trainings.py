"""What the Train tab needs of whoever trains; `workflows/trainings.py` is the one who does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

#: new: nothing was trained yet; stopped: can go on; finished: trained to the end; elsewhere: another program is at it.
State = Literal["new", "running", "stopping", "exporting", "stopped", "failed", "finished", "elsewhere"]
BUSY: tuple[State, ...] = ("running", "stopping", "exporting")


@dataclass(frozen=True)
class Setting:
    """One choice of a recipe, as a form shows it."""

    name: str
    label: str
    about: str
    kind: Literal["text", "whole", "number", "yes_no", "choice"]
    default: Any
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Suggestion:
    """What a session's next run begins with."""

    base_model: str  # one of `base_models()`, or what the session was trained on
    values: Mapping[str, Any]  # of every setting, by its name


@dataclass(frozen=True)
class PhotoShown:
    """A photo of a session as training sees it."""

    name: str  # its file name in the session
    crop: Any  # PIL image, a square
    crop_reason: str  # "face", "saliency", "detail", "centre", "by hand"
    caption: str


@dataclass(frozen=True)
class Task:
    """One part of a run: "class images", "latents", "text encoder", "U-Net"."""

    name: str
    done: int
    total: int
    facts: Mapping[str, float | str]  # loss, learning_rate, images_per_s, memory_mib, safe ...


@dataclass(frozen=True)
class TrainingShown:
    """All that can be seen of a session's training, running or not."""

    session: str
    state: State
    line: str  # one sentence: how it stands
    task: Task | None = None  # what is being done now
    step: int = 0  # of both stages together
    total_steps: int = 0
    eta_s: float | None = None  # to the end of training
    curve: str = ""  # SVG of the loss; "" before two steps
    samples: tuple[Path, ...] = ()  # the newest first
    problem: str = ""  # why it failed, in one line
    fix: str = ""
    log: tuple[str, ...] = ()  # the last lines that it wrote, for a failed one
    notes: tuple[str, ...] = ()
    resumable: bool = False
    exportable: bool = False
    model: Path | None = None  # the exported model
    lora: Path | None = None  # and its adapters alone

    @property
    def busy(self) -> bool:
        return self.state in BUSY


@dataclass(frozen=True)
class Use:
    """How a trained model is drawn with."""

    model: str  # its name on the shelf
    prompt: str


class Trainings(Protocol):
    """The sessions of one root and the one training that may run. Safe to ask from any thread; UserError for what
    the user can mend, names of sessions and photos included."""

    root: Path

    def sessions(self) -> list[str]: ...

    def create(self, name: str) -> str:
        """A new session, or the one that is there; its name as it is on the disk."""

    def photos(self, session: str) -> list[PhotoShown]: ...

    def add_photos(self, session: str, files: Sequence[Path]) -> list[str]:
        """What became of them: one sentence, then a line for each one that was refused or changed."""

    def delete_photo(self, session: str, photo: str) -> None: ...

    def set_caption(self, session: str, photo: str, caption: str) -> None: ...

    def training_prompt(self, instance_prompt: str, caption: str) -> str:
        """What training reads beside a photo of this caption."""

    def settings(self) -> tuple[Setting, ...]:
        """Every choice of a recipe, in its order."""

    def base_models(self) -> list[tuple[str, str]]:
        """(what is shown, what is said to `start`) of each model that can be trained."""

    def suggested(self, session: str, base_model: str = "", method: str = "") -> Suggestion:
        """What suits; with neither named, the session's last run."""

    def running(self) -> str:
        """The session that is in training or being exported; "" = none."""

    def look(self, session: str) -> TrainingShown: ...

    def start(
        self, session: str, base_model: str, values: Mapping[str, Any], pause_drawing: bool = False
    ) -> None:
        """Train with these settings; a stopped run of the very same ones goes on."""

    def resume(self, session: str, pause_drawing: bool = False) -> None:
        """Go on where the session's last run stopped."""

    def stop(self, session: str) -> None:
        """Finish the step and save; asked again while it stops, end at once."""

    def export(self, session: str) -> None:
        """A model file of what is trained so far."""

    def use(self, session: str, kind: Literal["model", "lora"] = "model") -> Use:
        """Put the trained model, or its base model and the LoRA, on the shelf; how to draw with it."""

    def close(self) -> None:
        """End what runs, saved."""
