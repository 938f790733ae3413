"""The models that have a name: what comes with fastsd, `known_models.yaml`, and what users add in files of their own."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from fastsd_lib.core.config import config_from_dict, read_yaml
from fastsd_lib.core.errors import UserError
from fastsd_lib.core.paths import expanded
from fastsd_lib.core.text import escaped

EMBEDDED = "embedded"
BUNDLED = Path(__file__).with_name("known_models.yaml")
FAMILIES = ("sd1", "sd2", "sdxl", "sdxl_refiner", "sd3", "flux")
# Hugging Face's own rule for "organisation/name".
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
FILE_ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth")
_SHA256 = re.compile(r"[0-9a-f]{64}")
Entry = TypeVar("Entry")


@dataclass(frozen=True)
class KnownModel:
    """One line of `models list`; the field names are the words of the YAML files."""

    name: str  # "embedded", a Hugging Face id, or a word
    family: str
    about: str = ""
    kind: str = "checkpoint"
    variant: str = ""  # "base", "inpainting", "refiner", "dev" ...
    resolution_px: int = 0  # the side of the pictures that it was trained with; 0 = does not apply
    prediction: str = ""
    text_encoders: tuple[str, ...] = ()
    mirrors: tuple[str, ...] = ()  # in order: hf:org/name, hf:org/name/file.safetensors, https://...
    sha256: str = ""  # of the single file, as its publisher gives it; folders have none
    size_bytes: int = 0  # of the download; 0 = comes along, or is not known
    licence: str = ""
    gated: bool = False  # the licence has to be accepted on its page first, and a token given
    uses: tuple[str, ...] = ("generate",)
    aliases: tuple[str, ...] = ()
    withdrawn: tuple[str, ...] = ()  # addresses that are gone; this model is what was there

    LIMITS: ClassVar = {"resolution_px": (0, 8192), "size_bytes": (0, 10**12)}
    CHOICES: ClassVar = {
        "family": FAMILIES,
        "kind": ("checkpoint", "vae"),
        "prediction": ("", "epsilon", "v_prediction", "flow"),
    }

    @property
    def download_mb(self) -> int:
        return round(self.size_bytes / 1e6)

    @property
    def names(self) -> tuple[str, ...]:
        """Whatever it is called by, its own name first."""
        return (self.name, *self.aliases, *self.withdrawn)

    def conflicts(self) -> list[str]:
        """What only several fields together, or a closer look, can tell."""
        found = source_problems(self.mirrors)
        if self.sha256 and not _SHA256.fullmatch(self.sha256):
            found.append(
                f"sha256 is {self.sha256[:20]!r}; type its 64 digits of 0-9 and a-f, or leave it out"
            )
        for use in self.uses:
            if use not in ("train", "generate"):
                found.append(f"uses has {escaped(use)[:40]!r}; take train, generate or both")
        if not self.mirrors and self.name != EMBEDDED:
            found.append("mirrors is empty; name where the model is, such as mirrors: [hf:org/name]")
        return found


def known_models(user_file: Path | None = None, root: Path | None = None) -> tuple[KnownModel, ...]:
    """What comes with fastsd, then what users added: in `user_file`, or else in the files of `user_files(root)`.

    A user's model of a known name stands in the place of that one. UserError for a file with anything wrong in it.
    """
    models = {model.name: model for model in bundled_models()}
    for file in (user_file,) if user_file else user_files(root):
        models |= {model.name: model for model in read_models(file)}
    return tuple(models.values())


def find_known(name: str, user_file: Path | None = None, root: Path | None = None) -> KnownModel | None:
    """The model of this name, alias or withdrawn address; of two, the one that was added last."""
    return next((one for one in reversed(known_models(user_file, root)) if name in one.names), None)


def replaced(name: str, model: KnownModel) -> str:
    """What to tell somebody who asked for `model` by an address that is gone; "" for any other."""
    if name not in model.withdrawn:
        return ""
    return f"{name} was withdrawn; taken from {shown_source(model.mirrors[0])} instead"


def public_name(model: KnownModel) -> str:
    """What strangers may read of where it comes from: "embedded", or a Hugging Face id; "" where it has none."""
    if model.name == EMBEDDED or (model in bundled_models() and HUB_ID.fullmatch(model.name)):
        return model.name
    places = (hub_source(source) for source in model.mirrors)
    return next((place.hub_id for place in places if place), "")


def nearest(name: str, models: Iterable[KnownModel], most: int = 3) -> list[str]:
    """The known names that look like this one."""
    return difflib.get_close_matches(name, [word for one in models for word in one.names], n=most, cutoff=0.4)


def user_files(root: Path | None = None) -> tuple[Path, ...]:
    """Where users write models of their own, those files that are there: the user's, then that of the sessions."""
    home = expanded(os.environ.get("XDG_CONFIG_HOME") or "~/.config")
    places = [home / "fastsd" / "models.yaml"]
    places += [root / "Fast-Dreambooth" / "models.yaml"] if root else []
    return tuple(place for place in places if place.is_file())


def read_models(file: Path) -> tuple[KnownModel, ...]:
    """The models in a YAML file of `name: {field: value}`. UserError listing what is wrong, field by field."""
    return read_entries(KnownModel, file)


def read_entries(cls: type[Entry], file: Path) -> tuple[Entry, ...]:
    """One dataclass for each `name: {field: value}` of a YAML file; see core.config for what is refused."""
    values = read_yaml(file, "list of models", "see docs/models.md")
    if not isinstance(values, Mapping):
        raise UserError(
            f"{file} is no list of models.",
            fix="write the name of each with a colon, and its fields below it.",
        )
    return tuple(_entry(cls, name, fields, file) for name, fields in values.items())


def _entry(cls: type[Entry], name: Any, fields: Any, file: Path) -> Entry:
    where = f"{file}: {escaped(str(name))[:80]}"
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{where}: a name must be text.", fix='put it in quotes, such as "1.5".')
    if not isinstance(fields, Mapping):
        raise UserError(
            f"{where} must have `field: value` lines below it.",
            fix="write family: and mirrors: below its name.",
        )
    if "name" in fields:
        raise UserError(f"{where} is named twice.", fix="leave out the line name: below it.")
    return config_from_dict(cls, {"name": name, **fields}, where=where)


@functools.lru_cache(maxsize=1)
def bundled_models() -> tuple[KnownModel, ...]:
    """Those that come with fastsd."""
    return read_bundled(KnownModel, BUNDLED)


def read_bundled(cls: type[Entry], file: Path) -> tuple[Entry, ...]:
    """As read_entries, in a tenth of the time: the file is our own, and tests read it strictly."""
    import yaml

    values = yaml.load(file.read_text("utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    tuples = {one.name for one in dataclasses.fields(cls) if str(one.type).startswith("tuple")}
    return tuple(
        cls(name=name, **{key: tuple(value) if key in tuples else value for key, value in fields.items()})
        for name, fields in values.items()
    )


# ------------------------------------------------------------------ sources


@dataclass(frozen=True)
class HubSource:
    """A source on the Hugging Face Hub, taken apart."""

    hub_id: str  # org/name
    file: str = ""  # of that repository; "" = the Diffusers folder that it is
    half: bool = False  # of a folder the weights in half precision, where there are any


def hub_source(source: str) -> HubSource | None:
    """The parts of "hf:org/name", "hf:org/name@fp16" or "hf:org/name/file.safetensors"; None for other sources."""
    if not source.startswith("hf:"):
        return None
    words = source.removeprefix("hf:").split("/")
    place, file = "/".join(words[:2]), "/".join(words[2:])
    return HubSource(place.removesuffix("@fp16"), file, not file and place.endswith("@fp16"))


def source_problems(sources: Iterable[str]) -> list[str]:
    """What is wrong with these sources, one sentence each."""
    found = []
    for source in sources:
        shown, hub = escaped(re.sub("//[^/]*@", "//...@", source))[:80], hub_source(source)
        if hub:
            if (
                not HUB_ID.fullmatch(hub.hub_id)
                or ".." in source
                or (hub.file and not hub.file.endswith(FILE_ENDINGS))
            ):
                found.append(f"the source {shown!r} is no hf:org/name or hf:org/name/file.safetensors")
        elif not re.match(r"https://[^/\s@]+/\S", source):
            found.append(f"the source {shown!r} is neither hf:org/name nor an https:// address")
    return found


def shown_source(source: str) -> str:
    """A source as people write it, without what an address may carry after its path."""
    return source.removeprefix("hf:").removesuffix("@fp16").partition("?")[0]
