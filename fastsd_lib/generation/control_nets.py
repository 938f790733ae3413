"""The ControlNets of a server: found by name, loaded for a base model, kept in memory while there is room."""

from __future__ import annotations

import difflib
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from fastsd_lib.core.errors import UserError
from fastsd_lib.formats.control_file import ControlFile, load_control_net, open_control_file
from fastsd_lib.formats.parts import Parts
from fastsd_lib.generation.library import LibraryFolders, find_files
from fastsd_lib.models.fits import check_fit
from fastsd_lib.models.pieces import Piece

NO_MODEL = ("", "none", "None")
BUDGET_BYTES = 4 * 2**30  # three networks for SD 1.5 in fp32


@dataclass(frozen=True)
class ControlInfo:
    """A ControlNet on disk."""

    name: str
    path: Path
    family: str  # sd1, sd2, sdxl; "other" for a base model of another width, such as the embedded one
    control: ControlFile

    @property
    def hash(self) -> str:
        """A1111's short hash of a file: of 64 KiB at the end of the first MiB."""
        with self.control.file.path.open("rb") as handle:
            handle.seek(0x100000)
            return hashlib.sha256(handle.read(0x10000)).hexdigest()[:8]

    @property
    def title(self) -> str:
        return f"{self.name} [{self.hash}]"


class ControlLibrary:
    """One per server; may be asked from any thread."""

    def __init__(self, folders: LibraryFolders, budget_bytes: int = BUDGET_BYTES) -> None:
        self.folders = folders
        self.budget_bytes = budget_bytes
        self._lock = threading.RLock()
        self._listed: list[ControlInfo] | None = None
        self._skipped: dict[str, UserError] = {}
        self._loaded: OrderedDict[tuple, torch.nn.Module] = OrderedDict()

    def models(self) -> list[ControlInfo]:
        """Those that can be read, by name."""
        with self._lock:
            if self._listed is None:
                self._list()
            return list(self._listed)

    def skipped(self) -> dict[str, UserError]:
        """Files among them that are no ControlNet, by name, and why."""
        self.models()
        return dict(self._skipped)

    def refresh(self) -> None:
        """Look into the folders again."""
        with self._lock:
            self._listed = None

    def find(self, text: str) -> ControlInfo:
        """By name, title, file name or hash, in any case. UserError names the nearest ones."""
        wanted = text.strip().lower()
        models = self.models()
        for info in models:
            if wanted in (info.name.lower(), info.path.name.lower()):
                return info
        bare, _, short = wanted.removesuffix("]").rpartition(" [")
        for info in models:
            if info.hash in (short, wanted) and bare in ("", info.name.lower()):
                return info
        for info in models:  # a file that was replaced has another hash, but it is meant
            if bare and bare == info.name.lower():
                return info
        for name, why in self.skipped().items():
            if wanted in (name.lower(), bare):
                raise why
        if old := self._pickled(bare or wanted):
            raise UserError(
                f"The ControlNet {old.name} is a pickle, which can hold a program and is not opened.",
                fix=f"download {old.stem}.safetensors in its place.",
            )
        raise self._unknown(text, [info.name for info in models])

    def load(self, name: str, parts: Parts) -> torch.nn.Module:
        """The ControlNet, in the U-Net's dtype and on its device. UserError when it does not fit the model."""
        info, unet = self.find(name), parts.unet
        if not info.control.fits(unet):
            fitting = ", ".join(other.name for other in self.models() if other.control.fits(unet))
            raise UserError(
                f"The ControlNet {info.name} is for {_described(info.control.family, info.control.text_width)},"
                f" but {parts.name} is {_described_unet(unet)}.",
                fix=f"take one that fits: {fitting}." if fitting else _known_instead(info, unet),
            )
        like = next(unet.parameters())
        stat = info.control.file.path.stat()
        key = (str(info.path), stat.st_mtime_ns, stat.st_size, like.dtype, str(like.device), _shape(unet))
        with self._lock:
            if key not in self._loaded:
                self._loaded[key] = load_control_net(info.control, unet)
            self._loaded.move_to_end(key)
            while len(self._loaded) > 1 and sum(map(_bytes, self._loaded.values())) > self.budget_bytes:
                self._loaded.popitem(last=False)
            return self._loaded[key]

    def _list(self) -> None:
        self._listed, self._skipped = [], {}
        for name, path in self._found():
            try:
                control = open_control_file(path)
            except UserError as error:
                self._skipped[name] = error
            else:
                self._listed.append(ControlInfo(name, path, control.family, control))
        self._listed.sort(key=lambda info: info.name.lower())

    def _found(self) -> Iterator[tuple[str, Path]]:
        """Files, and folders of diffusers' layout, which are named by the folder."""
        seen = set()
        for named in find_files(self.folders.controlnets, (".safetensors",)).values():
            folder = named.path.parent
            whole = named.name.startswith("diffusion_pytorch_model") and (folder / "config.json").is_file()
            name, path = (folder.name, folder) if whole else (named.name, named.path)
            if name not in seen:
                seen.add(name)
                yield name, path
        for root in self.folders.controlnets:  # several folders hold files of the one name
            for config in sorted(root.glob("*/config.json")) if root.is_dir() else ():
                folder = config.parent
                if folder.name not in seen and any(folder.glob("diffusion_pytorch_model*.safetensors")):
                    seen.add(folder.name)
                    yield folder.name, folder

    def _pickled(self, name: str) -> Path | None:
        files = find_files(self.folders.controlnets, (".pth", ".pt", ".bin", ".ckpt"))
        return next(
            (file.path for file in files.values() if name in (file.name.lower(), file.path.name.lower())),
            None,
        )

    def _unknown(self, text: str, names: list[str]) -> UserError:
        near = difflib.get_close_matches(text, names, n=3, cutoff=0.3) or names[:8]
        return UserError(
            f"There is no ControlNet {text!r}.",
            fix=f"take one of: {', '.join(near)}."
            if near
            else "put ControlNets (.safetensors) into models/ControlNet.",
        )


def _bytes(net: torch.nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in net.parameters())


def _shape(unet: torch.nn.Module) -> tuple:
    config = unet.config
    return config.cross_attention_dim, tuple(config.block_out_channels), config.in_channels


def _known_instead(info: ControlInfo, unet: torch.nn.Module) -> str:
    """A way out when none of the library's fits: what the registry knows of for this base model."""
    from fastsd_lib.formats.control_file import FAMILIES

    family = FAMILIES.get(unet.config.cross_attention_dim, "")
    known = family and info.control.family in FAMILIES.values()
    instead = check_fit(family, Piece("controlnet", info.control.family)).instead if known else ""
    return instead or "put a ControlNet for this base model into models/ControlNet."


def _described_unet(unet: torch.nn.Module) -> str:
    from fastsd_lib.formats.control_file import FAMILIES

    width = unet.config.cross_attention_dim
    return _described(FAMILIES.get(width, "other"), width)


def _described(family: str, text_width: int) -> str:
    names = {"sd1": "Stable Diffusion 1", "sd2": "Stable Diffusion 2", "sdxl": "SDXL"}
    return f"{names.get(family, 'a base model')} (text width {text_width})"
