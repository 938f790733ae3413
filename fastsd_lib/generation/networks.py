"""LoRA and learned words that a request wants: found by name, put in force, and taken out again."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastsd_lib.formats.parts import Parts
from fastsd_lib.generation.library import LibraryFolders
from fastsd_lib.generation.prompt_tags import Tag
from fastsd_lib.generation.request import GenerationRequest
from fastsd_lib.generation.text_reader import EncodingCache


@dataclass(frozen=True)
class Networks:
    """What one request wants in force beside its model."""

    key: Hashable = ()  # the same key: the same weights and words
    embeddings: Mapping[str, Any] = field(default_factory=dict)  # name -> (count, width)
    tags: tuple[Tag, ...] = ()  # those of the prompt that are in force
    hashes: Mapping[str, str] = field(default_factory=dict)  # entries of a picture's text, "Lora hashes"
    warnings: tuple[str, ...] = ()

    def put_in_force(self, parts: Parts, texts: EncodingCache) -> None:
        """Make the live weights those that are wanted, unless they are already."""


class NetworkLibrary:
    """The user's LoRA files and learned words; safe to ask from any thread."""

    def __init__(self, folders: LibraryFolders) -> None:
        self.folders = folders

    def choose(self, request: GenerationRequest, parts: Parts) -> Networks:
        """What the request's prompts ask for. UserError for names that are not there or do not fit."""
        return Networks()
