"""LoRA and learned words that a request wants: found by name, put in force, and taken out again."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.text import escaped
from fastsd_lib.formats.parts import Parts
from fastsd_lib.generation.embeddings import EmbeddingInfo, LearnedWord, read_embedding
from fastsd_lib.generation.library import LibraryFolders, find_files
from fastsd_lib.generation.network_files import NetworkFile, read_network
from fastsd_lib.generation.networks_in_force import InForce, Stamp, Wanted, stamp_of
from fastsd_lib.generation.prompt_tags import LORA_KINDS, Tag, network_weights, split_tags, without_comments
from fastsd_lib.generation.request import GenerationRequest
from fastsd_lib.generation.text_reader import EncodingCache
from fastsd_lib.models.fits import check_fit
from fastsd_lib.models.pieces import Piece

MOST_NETWORKS = 32  # in one prompt; each makes every change of weights slower
PICKLED = (".pt", ".ckpt", ".bin", ".pth")
T = TypeVar("T")


@dataclass(frozen=True)
class LoraInfo:
    """One LoRA file of the library."""

    name: str  # the file's name without its ending
    alias: str  # what its maker called it; the name where nothing is said
    path: Path
    metadata: Mapping[str, Any]  # what is JSON in the header is read
    family: str  # sd1, sd2, sdxl ...; "" where the file does not say
    file: NetworkFile = field(repr=False, compare=False)
    _hashed: list[str] = field(default_factory=list, repr=False, compare=False)

    def sha256_short(self) -> str:
        """A1111's hash of a network, of "Lora hashes" in a picture's text: 12 letters.

        Of the tensors without the header, so that editing the metadata does not change it; kohya's programs
        write it down as `sshs_model_hash`, which is believed where it is there.
        """
        if not self._hashed:
            said = self.file.metadata.get("sshs_model_hash", "")
            self._hashed.append(
                said[:12] if re.fullmatch("[0-9a-f]{64}", said) else _hash_of_tensors(self.path)[:12]
            )
        return self._hashed[0]


@dataclass(frozen=True)
class _Felt:
    """What a text encoder feels of the networks in force."""

    networks: tuple[Hashable, ...]


@dataclass(frozen=True)
class Networks:
    """What one request wants in force beside its model."""

    wanted: tuple[Wanted, ...] = ()
    embeddings: Mapping[str, LearnedWord] = field(default_factory=dict)  # those that its prompts may mean
    tags: tuple[Tag, ...] = ()  # those of the prompt that are in force
    hashes: Mapping[str, str] = field(default_factory=dict)  # name in the prompt -> hash, of the networks
    word_hashes: Mapping[str, str] = field(default_factory=dict)  # name -> hash, of the learned words
    warnings: tuple[str, ...] = ()

    @property
    def key(self) -> Hashable:
        """The same key: the same weights."""
        return tuple(one.key for one in self.wanted)

    def put_in_force(self, parts: Parts, texts: EncodingCache) -> None:
        """Make the live weights those that are wanted, unless they are already.

        `texts` forgets nothing, but keeps what different weights of a text encoder say apart. Whoever keeps
        anything that follows from weights watches `parts.weights_version`, a number that changes with them.
        """
        force = InForce.of(parts)
        force.exchange(parts, self.wanted)
        parts.weights_version = force.version
        felt = tuple((one.stamp, one.text_encoder, one.rank) for one in self.wanted if one.text_encoder)
        if felt or isinstance(texts.state, _Felt):
            texts.state = _Felt(felt) if felt else None

    def infotext(self, words: Iterable[str]) -> dict[str, str]:
        """The entries of a picture's text as A1111 writes them; `words`: the learned words that were used."""
        found = {}
        networks = [f"{re.sub('[:,]', '', name)}: {sha}" for name, sha in self.hashes.items()]
        used = [
            f"{name}: {self.word_hashes[name]}" for name in dict.fromkeys(words) if name in self.word_hashes
        ]
        found |= {"Lora hashes": ", ".join(networks)} if networks else {}
        return found | ({"TI hashes": ", ".join(used)} if used else {})


class NetworkLibrary:
    """The user's LoRA files and learned words; safe to ask from any thread."""

    def __init__(self, folders: LibraryFolders) -> None:
        self.folders = folders
        self._own_loras: dict[str, Path] = {}  # from elsewhere on the disk
        self._lock = threading.RLock()
        self._read: dict[tuple[str, Stamp], Any] = {}  # what a file says, or the UserError that it gives

    def refresh(self) -> None:
        """Read everything anew. New and changed files are seen without it."""
        with self._lock:
            self._read.clear()

    def add_lora(self, file: Path) -> str:
        """Take a LoRA file from anywhere on the disk besides; its name here, which hides others of this name."""
        self._own_loras = {**self._own_loras, file.stem: file}
        return file.stem

    def loras(self) -> list[LoraInfo]:
        """All that can be read, by name."""
        found = (self._try(_lora, path) for path in self._lora_files().values())
        return sorted((one for one in found if isinstance(one, LoraInfo)), key=lambda one: one.name.lower())

    def embeddings(self) -> list[EmbeddingInfo]:
        """All that can be read, by name, for whatever model."""
        return [one for one in self._all_words().values() if isinstance(one, EmbeddingInfo)]

    def skipped(self) -> dict[str, str]:
        """Names of files in the folders of learned words that cannot be read -> why."""
        return {name: one.message for name, one in self._all_words().items() if isinstance(one, UserError)}

    def find_lora(self, name: str, tag: str = "") -> LoraInfo:
        """By file name, by path below the folder or by the maker's name. UserError names the nearest ones."""
        wanted = name.removesuffix(".safetensors")
        files = self._lora_files()
        path = files.get(wanted) or self._below(wanted)
        if path is None:
            folded = [one for stem, one in files.items() if stem.lower() == wanted.lower()]
            path = folded[0] if len(folded) == 1 else None
        if path is not None:
            info = self._try(_lora, path)
            if isinstance(info, UserError):
                raise UserError(info.message, fix=info.fix)
            return info
        loras = self.loras()
        for same in (lambda one: one.alias == wanted, lambda one: one.alias.lower() == wanted.lower()):
            named = [one for one in loras if same(one)]
            if named:
                return named[0]
        self._refuse_pickled(wanted)
        names = list(dict.fromkeys([*files, *(one.alias for one in loras)]))
        near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.4) or sorted(names)[:5]
        known = f"nearest: {', '.join(map(escaped, near))}" if near else "there are none"
        raise UserError(
            f"{escaped(tag)[:80] + ': there' if tag else 'There'} is no LoRA {escaped(name)[:60]!r} ({known}).",
            fix="take one of these names, or put the file into models/Lora."
            if near
            else "put the .safetensors file into models/Lora.",
        )

    def choose(self, request: GenerationRequest, parts: Parts) -> Networks:
        """What the request's prompts ask for.

        UserError for a network that is not there, is made for another base model or cannot be read, and for
        hypernetworks. Modules that a model does not have are a warning while most of the network fits.
        """
        tags = split_tags(without_comments(request.prompt))[1]
        words = self._words(request)
        hashes = {name: one.sha256 for name, one in words.items()}
        base = Networks(embeddings={name: one.vectors for name, one in words.items()}, word_hashes=hashes)
        if request.networks_off:
            return base
        for tag in tags:
            if tag.kind == "hypernet":
                raise UserError(
                    f"{escaped(tag.text)[:80]}: hypernetworks are not supported.",
                    fix="leave the tag out; a LoRA does the same.",
                )
        tags = [tag for tag in tags if tag.kind in LORA_KINDS]
        if len(tags) > MOST_NETWORKS:
            raise UserError(f"The prompt names {len(tags)} LoRA.", fix=f"take at most {MOST_NETWORKS}.")
        wanted, shorts, warnings = [], {}, []
        for tag in tags:
            weights = network_weights(tag)
            info = self.find_lora(tag.name, tag.text)
            if warning := _fit(info, parts, tag):
                warnings.append(warning)
            shorts[tag.name] = info.sha256_short()
            wanted.append(
                Wanted(info.file, stamp_of(info.path), weights.text_encoder, weights.unet, weights.rank)
            )
        wanted = [one for one in wanted if one.text_encoder or one.unet]
        return Networks(
            tuple(wanted), base.embeddings, tuple(tags), shorts, hashes, tuple(dict.fromkeys(warnings))
        )

    def _words(self, request: GenerationRequest) -> dict[str, EmbeddingInfo]:
        """The learned words whose names stand in the prompts, as parts of other words too: tokens decide later."""
        hires = request.hires
        texts = [request.prompt, request.negative_prompt]
        texts += [hires.prompt, hires.negative_prompt] if hires else []
        said = _folded("\n".join(texts))
        found = {}
        for name, path in self._files(self.folders.embeddings, (".safetensors", *PICKLED)).items():
            if _folded(name) in said and isinstance(one := self._try(read_embedding, path), EmbeddingInfo):
                found[name] = one
        return found

    def _all_words(self) -> dict[str, EmbeddingInfo | UserError]:
        files = self._files(self.folders.embeddings, (".safetensors", *PICKLED))
        return {name: self._try(read_embedding, files[name]) for name in sorted(files, key=str.lower)}

    def _lora_files(self) -> dict[str, Path]:
        own = {name: path for name, path in self._own_loras.items() if path.is_file()}
        return self._files(self.folders.loras, (".safetensors",)) | own

    def _files(self, folders: Iterable[Path], endings: tuple[str, ...]) -> dict[str, Path]:
        return {name: one.path for name, one in find_files(folders, endings).items()}

    def _try(self, read: Callable[[Path], T], path: Path) -> T | UserError:
        """What the file says; once for each time it changes."""
        try:
            stamp = stamp_of(path)
        except OSError:
            return UserError(f"{path.name} is gone.", fix="put it back, or leave its name out.")
        key = (read.__name__, stamp)
        with self._lock:
            if key not in self._read:
                try:
                    self._read[key] = read(path)
                except UserError as error:
                    self._read[key] = error
                except OSError as error:
                    return UserError(
                        f"{path.name} cannot be read: {error.strerror}.", fix="look at its rights."
                    )
            return self._read[key]

    def _below(self, name: str) -> Path | None:
        """ "people/anna" of a file in a subfolder."""
        inside = PurePosixPath(name.replace("\\", "/"))
        if (
            len(inside.parts) < 2
            or inside.is_absolute()
            or ".." in inside.parts
            or ":" in name
            or "\0" in name
        ):
            return None
        for folder in self.folders.loras:
            if (path := folder / f"{inside}.safetensors").is_file():
                return path
        return None

    def _refuse_pickled(self, name: str) -> None:
        path = self._files(self.folders.loras, PICKLED).get(name.removesuffix(Path(name).suffix or "\0"))
        path = path or self._files(self.folders.loras, PICKLED).get(name)
        if path:
            raise UserError(
                f"{path.name} is a pickled LoRA, which can run code when it is opened.",
                fix="take it as .safetensors.",
            )


def _lora(path: Path) -> LoraInfo:
    file = read_network(path)
    alias = file.metadata.get("ss_output_name") or path.stem
    return LoraInfo(
        path.stem,
        alias,
        path,
        {key: _read_json(text) for key, text in file.metadata.items()},
        file.family,
        file,
    )


def _fit(info: LoraInfo, parts: Parts, tag: Tag) -> str:
    """A warning when some of the network does not fit; UserError when it is made for another model."""
    family = getattr(parts, "family", "sd1")
    if info.family:  # of the others the shapes below tell
        check_fit(Piece(family=family, name=parts.name), Piece("lora", info.family)).enforced(
            f"{escaped(tag.text)[:80]}: "
        )
    good, misfit = InForce.of(parts).check(parts, info.file, stamp_of(info.path))
    everything = len(info.file.modules)
    if 2 * len(good) < everything or not good:
        raise UserError(
            f"{escaped(tag.text)[:80]}: the LoRA does not fit the model {parts.name}: of its {everything} modules "
            f"{everything - len(good)} do not; {escaped(misfit)[:200]}.",
            fix="take it with the base model that it was trained on, or one of the same shape.",
        )
    if len(good) == everything:
        return ""
    left = everything - len(good)
    return f"{tag.text}: {left} of {everything} modules do not fit this model; {escaped(misfit)[:200]}"


def _folded(text: str) -> str:
    return " ".join(text.lower().split())


def _read_json(text: str) -> Any:
    if text[:1] not in ("{", "["):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _hash_of_tensors(path: Path) -> str:
    """sha256 of all that follows the header."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        handle.seek(8 + int.from_bytes(handle.read(8), "little"))
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
