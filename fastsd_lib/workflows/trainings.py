"""Trainings as the web page asks for them: sessions of one root, and one training at a time in its own process."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastsd_lib.core.config import config_from_dict, to_dict
from fastsd_lib.core.errors import UserError
from fastsd_lib.core.paths import expanded
from fastsd_lib.environment.hosts import default_root
from fastsd_lib.models import registry
from fastsd_lib.sessions import session as sessions
from fastsd_lib.sessions.session import Session
from fastsd_lib.training.config import DreamBoothConfig
from fastsd_lib.webui.trainings import PhotoShown, Setting, Suggestion, TrainingShown, Use
from fastsd_lib.workflows import dreambooth, older_sessions, session_photos, training_recipes
from fastsd_lib.workflows.running_training import Doing, RunningTraining
from fastsd_lib.workflows.training_trace import (
    LossTrace,
    began_at,
    held_by,
    samples_of,
    shown_from_disk,
    worked_on,
)

if TYPE_CHECKING:
    from fastsd_lib.generation.service import Service

STOP_S = 1800.0  # until a training that was asked to stop is ended hard: Drive may take long for the last checkpoint
CLOSE_S = 60.0


class SessionTrainings:
    """webui.trainings.Trainings over a root folder and the service that draws."""

    def __init__(self, service: Service, root: Path | None = None) -> None:
        self.service = service
        self.root = expanded(root or default_root()).absolute()
        self._lock = threading.RLock()
        self._run: RunningTraining | None = None  # the last one that was started
        self._traces: dict[str, LossTrace] = {}  # of sessions that no run of ours belongs to
        self._photos = session_photos.ShownPhotos()
        self._paused_drawing = False
        self._put_all_on_the_shelf()

    # --- sessions and photos

    def sessions(self) -> list[str]:
        return [session.name for session in sessions.list_sessions(self.root)]

    def create(self, name: str) -> str:
        return dreambooth.open_session(name.strip(), self.root).name

    def photos(self, session: str) -> list[PhotoShown]:
        return self._photos.shown(self._opened(session))

    def add_photos(self, session: str, files: Sequence[Path]) -> list[str]:
        return dreambooth.add_photos(self._changing(session), list(files)).lines()

    def delete_photo(self, session: str, photo: str) -> None:
        session_photos.delete(self._changing(session), photo)

    def set_caption(self, session: str, photo: str, caption: str) -> None:
        session_photos.set_caption(self._changing(session), photo, caption)

    def training_prompt(self, instance_prompt: str, caption: str) -> str:
        from fastsd_lib.images.captions import training_prompt

        return training_prompt(instance_prompt, caption)

    # --- recipes

    def settings(self) -> tuple[Setting, ...]:
        return training_recipes.settings()

    def base_models(self) -> list[tuple[str, str]]:
        return training_recipes.base_models(self.service.shelf, self.root)

    def suggested(self, session: str, base_model: str = "", method: str = "") -> Suggestion:
        opened = self._opened(session)
        base = base_model or sessions.read_manifest(opened).get("base_model") or self._usual_base()
        base = training_recipes.base_of(base, self.service.shelf, opened, self.root)
        return Suggestion(base_model or base, to_dict(training_recipes.suggested(opened, base, method)))

    def _usual_base(self) -> str:
        current = self.service.shelf.find()
        trainable = current.family == training_recipes.TRAINED_FAMILY
        return current.name if trainable else registry.EMBEDDED

    # --- one training at a time

    def running(self) -> str:
        run = self._run
        return run.session.name if run and run.alive else ""

    def start(
        self, session: str, base_model: str, values: Mapping[str, Any], pause_drawing: bool = False
    ) -> None:
        opened = self._opened(session)
        self._refuse_another()
        config = config_from_dict(DreamBoothConfig, values, where="the recipe")
        base = training_recipes.base_of(base_model, self.service.shelf, opened, self.root)
        if not dreambooth.photos(opened):
            raise UserError(
                f"Session {opened.name!r} has no photos.", fix="add some first: 5 to 20 of one subject."
            )
        self._begin(opened, "train", pause_drawing, base_model=base, recipe=to_dict(config))

    def resume(self, session: str, pause_drawing: bool = False) -> None:
        opened = self._opened(session)
        self._refuse_another()
        if not held_by(opened).trained_on:
            raise UserError(f"Session {opened.name!r} has no run to resume.", fix="press Start.")
        self._begin(opened, "resume", pause_drawing)

    def export(self, session: str) -> None:
        self._begin(self._opened(session), "export")

    def stop(self, session: str) -> None:
        run = self._run
        if run is None or not run.alive or run.session.name != session:
            raise UserError(f"Session {session!r} is not in training now.", fix="look at its state again.")
        run.stop(STOP_S)

    def close(self) -> None:
        """End what runs: saved, if it takes no longer than CLOSE_S."""
        run = self._run
        if run and run.alive:
            run.process.ask_to_stop(CLOSE_S)
            if not run.process.wait(CLOSE_S + 10):
                run.process.kill()

    def _refuse_another(self) -> None:
        if busy := self.running():
            raise UserError(
                f"{busy!r} is in training: this server trains one session at a time.",
                fix="wait for its end, or stop it.",
            )

    def _begin(self, session: Session, doing: Doing, pause_drawing: bool = False, **order: Any) -> None:
        with self._lock:
            self._refuse_another()
            if elsewhere := worked_on(session):
                raise UserError(
                    f"Another program works on this session: {elsewhere}.", fix="wait for its end."
                )
            order = {"root": str(self.root), "session": session.name, "do": doing, **order}
            if pause_drawing:
                self._pause_drawing()
            try:
                self._run = RunningTraining(session, doing, order, self._over)
            except BaseException:
                self._draw_again()
                raise

    def _over(self, run: RunningTraining) -> None:
        self._draw_again()
        self._traces.pop(run.session.name, None)
        if run.exported:
            with suppress(UserError):  # a file that is gone again
                self._put_on_the_shelf(run.session, anew=True)

    def _pause_drawing(self) -> None:
        """Nothing is drawn, and loaded models leave the memory to the training."""
        if not self.service.paused:
            self.service.pause()
            self._paused_drawing = True
        self.service.shelf.unload()

    def _draw_again(self) -> None:
        if self._paused_drawing:
            self._paused_drawing = False
            self.service.resume()

    # --- how it stands

    def look(self, session: str) -> TrainingShown:
        opened = self._opened(session)
        run = self._run if self._run and self._run.session.name == opened.name else None
        if run and (state := run.state) in ("running", "stopping", "exporting"):
            return TrainingShown(
                opened.name, state, run.line, run.task, run.step, run.total_steps, run.eta_s,
                curve=run.trace.svg(), samples=samples_of(opened, began_at(opened)), notes=tuple(run.notes),
            )  # fmt: skip
        return shown_from_disk(
            opened,
            self._traces.setdefault(opened.name, LossTrace(opened)).svg(began_at(opened)),
            problem=run.problem if run else "",
            fix=run.fix if run else "",
            log=run.process.log if run and run.problem else (),
            notes=tuple(run.notes) if run else (),
        )

    def use(self, session: str, kind: Literal["model", "lora"] = "model") -> Use:
        opened = self._opened(session)
        prompt = str(training_recipes.as_written(opened).get("instance_prompt") or "")
        file = opened.lora_file if kind == "lora" else opened.model_file
        if not file.is_file():
            raise UserError(
                f"Session {opened.name!r} has no {file.name} yet.", fix="train it, or press Export."
            )
        model, lora = self._put_on_the_shelf(opened)
        if kind == "model":
            return Use(model, prompt)
        trained_on = sessions.read_manifest(opened).get("base_model") or registry.EMBEDDED
        return Use(self._shelf_name(trained_on), f"{prompt} <lora:{lora}:1>")

    def _put_on_the_shelf(self, session: Session, anew: bool = False) -> tuple[str, str]:
        """Names of the trained model and the LoRA; "" for what is not there. `anew`: the files have changed."""
        model = lora = ""
        if session.model_file.is_file():
            model = self.service.shelf.add_model(registry.base_model(session.model_file))
            if anew:
                self.service.shelf.unload(model)
        if session.lora_file.is_file():
            lora = self.service.shelf.library.networks.add_lora(session.lora_file)
        return model, lora

    def _put_all_on_the_shelf(self) -> None:
        with suppress(UserError, OSError):  # no Drive yet: its sessions are put there as they are used
            for session in sessions.list_sessions(self.root):
                with suppress(UserError, OSError):
                    self._put_on_the_shelf(session)

    def _shelf_name(self, base: str) -> str:
        """The name on the shelf of a base model, which is put there if it is not."""
        with suppress(UserError):
            return self.service.shelf.find(base).name
        return self.service.shelf.add_model(dreambooth.base_model(base, self.root))

    # --- inside

    def _opened(self, name: str) -> Session:
        """The session of this name, completed if an older notebook made it."""
        session = dreambooth.open_session(name or "", self.root, create_if_missing=False)
        if not session.manifest.exists():
            older_sessions.complete(session)
        return session

    def _changing(self, name: str) -> Session:
        """The same, for a change of what training reads."""
        session = self._opened(name)
        if self.running() == session.name:
            raise UserError(
                f"{session.name!r} is in training: its photos and captions stay as they are until it ends.",
                fix="stop it first.",
            )
        return session
