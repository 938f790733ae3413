"""What a server can draw with beside its models: networks, learned words, ControlNets."""

from __future__ import annotations

from dataclasses import dataclass

from fastsd_lib.generation.control_nets import ControlLibrary
from fastsd_lib.generation.library import LibraryFolders
from fastsd_lib.generation.networks import NetworkLibrary


@dataclass
class Library:
    """One per server, shared by all of its models."""

    folders: LibraryFolders
    networks: NetworkLibrary
    controlnets: ControlLibrary

    @classmethod
    def of(cls, folders: LibraryFolders) -> Library:
        return cls(folders, NetworkLibrary(folders), ControlLibrary(folders))
