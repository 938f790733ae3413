"""The models that a service can draw with, and those of them that are in memory."""

from __future__ import annotations

import difflib
import threading
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.heap import physical_bytes
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.generation.engine import Engine, load_engine
from fastsd_lib.generation.library import LibraryFolders, NamedFile, find_files
from fastsd_lib.generation.pipeline_engine import KINDS as PIPELINE_KINDS
from fastsd_lib.generation.pipeline_engine import PipelineEngine
from fastsd_lib.generation.resources import Library
from fastsd_lib.generation.shelf_files import FileHashes, ModelInfo
from fastsd_lib.generation.vae import release
from fastsd_lib.models import registry
from fastsd_lib.models.identify import identify

CHECKPOINTS = (".safetensors", ".ckpt")
VAES = (".safetensors", ".ckpt", ".pt")
OWN_VAE = ("", "automatic", "none")
BUDGET_SHARE = 0.6  # of the device's memory, the rest is for drawing

Key = tuple[str, str, str, int]  # model, VAE, device, number of the worker


class Shelf:
    """Models by name. They are loaded by whoever draws, and leave when the room is needed: the longest unused first.

    `library`: where checkpoints, VAEs and what prompts name are looked up. `current`: the model of orders that
    name none. `budget_mib`: of weights in memory; None = most of the device. `hashes`: a file that remembers the
    hashes of checkpoints.
    """

    def __init__(
        self,
        library: Library | LibraryFolders,
        current: ModelFiles | str = registry.EMBEDDED,
        device: str = "auto",
        dtype: str = "auto",
        budget_mib: int | None = None,
        threads: int | None = None,
        most_models: int | None = None,
        hashes: Path | None = None,
    ) -> None:
        self.library = library if isinstance(library, Library) else Library.of(library)
        self.device, self.dtype, self.threads = device, dtype, threads
        self.budget_mib, self.most_models = budget_mib, most_models
        self._hashes = FileHashes(hashes)
        self._loaded: OrderedDict[Key, Engine | PipelineEngine] = OrderedDict()  # the longest unused first
        self._lock = threading.Lock()  # of the table; never held while a model is read
        self._loading: dict[Key, str] = {}
        self._own = {registry.EMBEDDED: ModelInfo(registry.EMBEDDED, registry.EMBEDDED_FOLDER, self._hashes)}
        if isinstance(current, ModelFiles):
            current = self._add(current).name
        self._listed: list[ModelInfo] = []
        self.current = self.find(current).name

    @classmethod
    def of(cls, engine: Engine | PipelineEngine) -> Shelf:
        """A shelf on which this loaded model stands, on its own device."""
        device = str(_weights(engine)[0].device)
        if isinstance(engine, PipelineEngine):
            shelf = cls(LibraryFolders(), engine.model, device)
            engine.name = engine.name or shelf.current
        else:
            shelf = cls(engine.library or LibraryFolders(), engine.model, device)
            engine.library = engine.library or shelf.library
        shelf._loaded[shelf.current, "", device, 0] = engine
        return shelf

    def _add(self, files: ModelFiles) -> ModelInfo:
        """A model from anywhere on the disk."""
        name = files.path.stem if files.layout == "single_file" else files.path.name
        if files.path == registry.EMBEDDED_FOLDER:
            return self._own[registry.EMBEDDED]
        return self._own.setdefault(name, ModelInfo(name, files.path, self._hashes, files))

    def add_model(self, files: ModelFiles) -> str:
        """Put a model from anywhere on the disk beside those of the library; the name that it has here.

        The same file again is the same model; another one of the same name gets a number.
        """
        info = self._add(files)
        if info.path == files.path:
            return info.name
        number = 2
        while (name := f"{info.name} ({number})") in self._own and self._own[name].path != files.path:
            number += 1
        return self._own.setdefault(name, ModelInfo(name, files.path, self._hashes, files)).name

    @property
    def folders(self) -> LibraryFolders:
        return self.library.folders

    # --- names

    def models(self) -> list[ModelInfo]:
        """All there are now, in the order in which they are looked for."""
        found = find_files(self.folders.checkpoints, CHECKPOINTS)
        others = {one.name: ModelInfo(one.name, one.path, self._hashes) for one in found.values()}
        self._listed = list((others | self._own).values())
        return self._listed

    def find(self, text: str = "") -> ModelInfo:
        """By title, name, file name, path or hash; "" = the current one. UserError with the nearest names."""
        text = text.strip() or self.current
        found = _named(text, self._listed) or _named(text, self.models())
        if found is not None:
            return found
        names = [model.name for model in self._listed]
        lower = {name.lower(): name for name in names}
        near = [lower[one] for one in difflib.get_close_matches(text.lower(), list(lower), n=3, cutoff=0.3)]
        raise UserError(
            f"No model {text!r} here (nearest: {', '.join(near or names[:3])}).",
            fix="take one of these, or put its file into the folder of checkpoints.",
        )

    def known_hash(self, model: str) -> str | None:
        """Ten digits, when they need not be computed."""
        return (self.find(model).known_sha256 or "")[:10] or None

    def vaes(self) -> list[NamedFile]:
        return list(find_files(self.folders.vaes, VAES).values())

    def find_vae(self, text: str) -> str:
        """The name of a VAE file; "" for the model's own. UserError with the names there are."""
        if text.strip().lower() in OWN_VAE:
            return ""
        for one in (vaes := self.vaes()):
            if text in (one.name, one.path.name, str(one.path)):
                return one.name
        raise UserError(
            f"No VAE {text!r} here (there: {', '.join(one.name for one in vaes) or 'none'}).",
            fix='take one of these, or "Automatic" for the model\'s own.',
        )

    def use(self, model: str) -> None:
        """From now on orders that name no model go to this one."""
        self.current = self.find(model).name

    # --- memory

    def engine(
        self, model: str = "", vae: str = "", device: str = "auto", number: int = 0
    ) -> Engine | PipelineEngine:
        """The loaded model; loads it when it must, which takes seconds: called by the thread that draws with it.

        `device`: "auto" = the shelf's. `number` tells apart workers on one device, which cannot share modules.
        UserError for a file that is no model, and for a VAE that does not fit.
        """
        device = self.device if device == "auto" else device
        info, vae = self.find(model), self.find_vae(vae)
        if vae and info.family in PIPELINE_KINDS:
            raise UserError(
                f"{info.name} is a {info.family} model, which is drawn with its own VAE only (not {vae}).",
                fix='take "Automatic".',
            )
        key = info.name, vae, device, number
        with self._lock:
            if key in self._loaded:
                self._loaded.move_to_end(key)
                return self._loaded[key]
            self._loading[key] = info.name
        try:
            if vae:
                engine = self._with_vae(self.engine(info.name, "", device, number), vae)
            else:
                self._make_room(self._size_on_disk(info, device), device)
                engine = load_engine(info.model_files, device, self.dtype, self.threads)
                if isinstance(engine, PipelineEngine):
                    engine.name = info.name
                else:
                    engine.library = self.library
                    engine.parts.name = info.name
        finally:
            with self._lock:
                self._loading.pop(key, None)
        with self._lock:
            self._loaded[key] = engine
        self._make_room(0, device, keep=key)
        return engine

    def _with_vae(self, engine: Engine, name: str) -> Engine:
        """The same U-Net and text encoder with another decoder."""
        from fastsd_lib.formats.vae_file import load_vae

        path = next(one.path for one in self.vaes() if one.name == name)
        parts = replace(engine.parts, vae=load_vae(path, like=engine.parts))
        return Engine(parts, engine.model, engine.texts, engine.library)

    @property
    def loading(self) -> bool:
        """Whether a model is being read now."""
        return bool(self._loading)

    def loaded(self) -> list[str]:
        """Names of the models in memory, the longest unused first."""
        with self._lock:
            return list(dict.fromkeys(key[0] for key in self._loaded))

    def unload(self, model: str = "") -> None:
        """Let go of one model, or of all; what is being drawn with one is finished first."""
        name = self.find(model).name if model else ""
        with self._lock:
            for key in [key for key in self._loaded if name in ("", key[0])]:
                del self._loaded[key]
        release()

    def reload(self) -> None:
        """The next order reads the current model from the disk again."""
        self.unload(self.current)

    def memory(self) -> dict[str, Any]:
        """MiB of weights by model, and how many may be there."""
        with self._lock:
            engines = list(self._loaded.items())
        used = {}
        for (name, vae, device, number), engine in engines:
            label = " ".join(
                part for part in (name, f"+ {vae}" if vae else "", f"on {device} #{number}") if part
            )
            used[label] = round(_bytes(engine) / 2**20, 1)
        return {
            "models": used,
            "loading": list(self._loading.values()),
            "budget_mib": self._budget_mib(self.device),
        }

    def _make_room(self, wanted_bytes: int, device: str, keep: Key | None = None) -> None:
        """Within the budget, or as near as it gets without the one that is needed."""
        budget = self._budget_mib(device) << 20
        with self._lock:
            there = [key for key in self._loaded if key[2] == device]
            models = {key[0] for key in there} | ({keep[0]} if keep else set())
            most = self.most_models or len(models) + 1
            sizes = _sizes({key: self._loaded[key] for key in there})
            coming = 0 if keep else 1
            for key in there:
                left = {one[0] for one in there if one in self._loaded}
                used = sum(sizes[one] for one in there if one in self._loaded)
                if used + wanted_bytes <= budget and len(left) + coming <= most:
                    break
                if keep is None or key[0] != keep[0]:
                    del self._loaded[key]
        release()

    def _budget_mib(self, device: str) -> int:
        if self.budget_mib is not None:
            return self.budget_mib
        if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()):
            index = int(device.partition(":")[2] or 0)
            return int(torch.cuda.get_device_properties(index).total_memory * BUDGET_SHARE) >> 20
        return int(physical_bytes() * BUDGET_SHARE) >> 20 or 8192

    def _size_on_disk(self, info: ModelInfo, device: str) -> int:
        """What its weights will take, judged by the file: a half-precision one doubles on a CPU."""
        seen = identify(info.model_files.path)
        full = {"fp32": 4, "fp16": 2, "bf16": 2}.get(self.dtype, 2 if "cuda" in device else 4)
        return seen.size_bytes * full // (4 if seen.dtype == "F32" else 2)


def _named(text: str, models: list[ModelInfo]) -> ModelInfo | None:
    bare = text.rpartition(" [")[0] or text
    for model in models:
        if text in (model.name, model.path.name, str(model.path)) or bare in (model.name, model.path.name):
            return model
    digits = text.lower()
    if len(digits) in (8, 10, 64) and set(digits) <= set("0123456789abcdef"):
        for model in models:
            if (model.known_sha256 or "").startswith(digits):
                return model
    return None


def _sizes(engines: dict[Key, Engine | PipelineEngine]) -> dict[Key, int]:
    """Bytes of each, weights that two of them share counted once."""
    seen: set[int] = set()
    sizes = {}
    for key, engine in engines.items():
        new = {id(weight): weight.nbytes for weight in _weights(engine) if id(weight) not in seen}
        seen |= set(new)
        sizes[key] = sum(new.values())
    return sizes


def _bytes(engine: Engine | PipelineEngine) -> int:
    return sum(weight.nbytes for weight in _weights(engine))


def _weights(engine: Engine | PipelineEngine) -> list[torch.Tensor]:
    return [weight for module in engine.modules for weight in module.parameters()]
