"""Which pictures are learned from and which are only looked at: drawn class by class, groups and copies kept together."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import sha256_file

Sample = tuple[Path, int]  # a picture, the number of its class


def copies_among(files: Sequence[Path]) -> dict[Path, str]:
    """SHA-256 of the files that share it with another one; only those of equal size are read."""
    by_size = defaultdict(list)
    for file in files:
        by_size[file.stat().st_size].append(file)
    by_hash = defaultdict(list)
    for same in by_size.values():
        if len(same) > 1:
            for file in same:
                by_hash[sha256_file(file)].append(file)
    return {file: digest for digest, same in by_hash.items() if len(same) > 1 for file in same}


def groups_of(
    samples: Sequence[Sample], root: Path, pattern: str | None, copies: dict[Path, str]
) -> list[str]:
    """One name per sample: samples of one name are never separated. Copies join the groups that they are in."""
    try:
        found = re.compile(pattern) if pattern else None
    except re.error as error:
        raise UserError(
            f"group_by {pattern!r} is no pattern: {error}.", fix=r"write one such as person_\d+."
        ) from None
    names, master = [], {}
    for file, _ in samples:
        inside = file.relative_to(root).as_posix()
        match = found.search(inside) if found else None
        name = f"group {match[1] if match.re.groups else match[0]}" if match else f"file {inside}"
        names.append(name)
    for (file, _), name in zip(samples, names, strict=True):  # union of a group and the copies in it
        if file in copies:
            a, b = _root(master, name), _root(master, f"copy {copies[file]}")
            master[max(a, b)] = min(a, b)
    return [_root(master, name) for name in names]


def _root(master: dict[str, str], name: str) -> str:
    while master.get(name, name) != name:
        name = master[name]
    return name


def split(
    samples: Sequence[Sample], groups: Sequence[str], shares: dict[str, float], seed: int
) -> dict[str, list[Sample]]:
    """Groups go, in an order drawn from the seed, to the part that lacks most of their class; the rest is training."""
    members = defaultdict(list)
    for sample, group in zip(samples, groups, strict=True):
        members[group].append(sample)
    totals = Counter(label for _, label in samples)
    wanted = {
        part: {label: max(1, round(share * count)) for label, count in totals.items()}
        for part, share in shares.items()
    }
    result: dict[str, list[Sample]] = {"train": [], **{part: [] for part in shares}}
    # Large groups first: small ones fill what is left.
    order = sorted(members, key=lambda group: (-len(members[group]), _drawn(seed, group)))
    for group in order:
        counts = Counter(label for _, label in members[group])
        room = {
            part: min(left[label] - count for label, count in counts.items()) for part, left in wanted.items()
        }
        part = max(room, key=lambda one: room[one]) if room else "train"
        if not room or room[part] < 0:
            part = "train"
        else:
            wanted[part] = {label: left - counts[label] for label, left in wanted[part].items()}
        result[part] += members[group]
    return {part: sorted(found) for part, found in result.items()}


def _drawn(seed: int, group: str) -> bytes:
    return hashlib.sha256(f"{seed} {group}".encode()).digest()
