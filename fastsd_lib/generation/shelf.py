"""The models that a service can draw with, and those of them that are in memory."""

from __future__ import annotations

import difflib
import threading
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import sha256_file
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.generation.engine import Engine, load_engine
from fastsd_lib.generation.library import LibraryFolders, NamedFile, find_files
from fastsd_lib.models import registry

if TYPE_CHECKING:
    from fastsd_lib.generation.resources import Library

ENDINGS = (".safetensors", ".ckpt")


@dataclass(frozen=True)
class ModelInfo:
    """A checkpoint by its names."""

    name: str  # without ending
    path: Path
    files: ModelFiles | None = field(default=None, compare=False)

    @cached_property
    def sha256(self) -> str:
        weights = (
            self.path / "unet" / "diffusion_pytorch_model.safetensors" if self.path.is_dir() else self.path
        )
        return sha256_file(weights)

    @property
    def short_hash(self) -> str:
        return self.sha256[:10]

    @property
    def title(self) -> str:
        return f"{self.path.name} [{self.short_hash}]"

    @property
    def family(self) -> str:
        return self.model_files.family

    @cached_property
    def model_files(self) -> ModelFiles:
        return self.files or registry.base_model(self.path)


class Shelf:
    """Models by name; loaded when first asked for."""

    def __init__(
        self,
        library: Library | LibraryFolders,
        current: ModelFiles | str = registry.EMBEDDED,
        device: str = "auto",
        dtype: str = "auto",
        budget_mib: int | None = None,
        threads: int | None = None,
        most_models: int | None = None,
    ) -> None:
        self.library = library
        self.device, self.dtype, self.budget_mib, self.threads = device, dtype, budget_mib, threads
        self.most_models = most_models
        self.loading = False
        self._loaded: dict[str, Engine] = {}
        self._lock = threading.Lock()
        self._own: dict[str, ModelInfo] = {}
        embedded = ModelInfo(registry.EMBEDDED, registry.EMBEDDED_FOLDER)
        self._own[embedded.name] = embedded
        if isinstance(current, ModelFiles):
            name = current.path.stem if current.layout == "single_file" else current.path.name
            self._own.setdefault(name, ModelInfo(name, current.path, current))
            current = name
        self.current = self.find(current).name

    @classmethod
    def of(cls, engine: Engine) -> Shelf:
        """A shelf on which this loaded model stands."""
        shelf = cls(LibraryFolders(), engine.model)
        shelf._loaded[shelf.current] = engine
        return shelf

    @property
    def folders(self) -> LibraryFolders:
        return getattr(self.library, "folders", self.library)

    def models(self) -> list[ModelInfo]:
        found = find_files(self.folders.checkpoints, ENDINGS)
        others = {one.name: ModelInfo(one.name, one.path) for one in found.values()}
        return list((self._own | others).values())

    def find(self, text: str = "") -> ModelInfo:
        """By title, name, file name or hash; "" = the current one. UserError with the nearest names."""
        text = text.strip() or self.current
        models = self.models()
        for model in models:
            if text in (model.name, model.path.name, str(model.path)):
                return model
        bare = text.rpartition(" [")[0] or text
        for model in models:
            if bare in (model.name, model.path.name):
                return model
        if len(text) in (10, 64) and all(sign in "0123456789abcdef" for sign in text):
            for model in models:
                if model.sha256.startswith(text):
                    return model
        near = difflib.get_close_matches(text, [model.name for model in models], n=3, cutoff=0.3)
        raise UserError(
            f"No model {text!r} here (nearest: {', '.join(near or [registry.EMBEDDED])}).",
            fix="take one of these, or put the file into the checkpoints folder and refresh.",
        )

    def vaes(self) -> list[NamedFile]:
        return list(find_files(self.folders.vaes, (".safetensors", ".ckpt", ".pt")).values())

    def engine(self, model: str = "", vae: str = "") -> Engine:
        """The loaded model; loads it first when it must. Called by the worker."""
        info = self.find(model)
        with self._lock:
            if info.name not in self._loaded:
                self.loading = True
                try:
                    self._loaded[info.name] = load_engine(
                        info.model_files, self.device, self.dtype, self.threads
                    )
                finally:
                    self.loading = False
            return self._loaded[info.name]

    def use(self, model: str) -> None:
        """From now on orders without a model's name go to this one."""
        self.current = self.find(model).name

    def unload(self) -> None:
        with self._lock:
            self._loaded.clear()

    def reload(self) -> None:
        self.unload()

    def memory(self) -> dict[str, Any]:
        return {"models": list(self._loaded)}
