"""What of a vision model is its beginning, its blocks and its head: to freeze parts and let each learn at its own rate."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.train_config import VitTrainConfig

HEAD = "head"
_NORMS = re.compile(r"bias$|norm|\bln_|cls_token|position|lambda", re.IGNORECASE)


def head_modules(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that turn features into classes: whatever stands beside the base model."""
    base = getattr(model, "base_model_prefix", "")
    return tuple(
        name for name, part in model.named_children() if name != base and any(True for _ in part.parameters())
    )


def block_names(model: nn.Module) -> list[str]:
    """Full names of the blocks, first to last: members of the innermost lists of modules (Swin has lists of lists).

    A list of different things, such as ConvNeXt's steps between its stages, is none of blocks.
    """
    lists = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.ModuleList)]
    inner = [
        (name, part)
        for name, part in lists
        if len({type(one) for one in part}) == 1
        and not any(isinstance(one, nn.ModuleList) for one in part.modules() if one is not part)
    ]
    return [f"{name}.{number}" for name, part in inner for number in range(len(part))]


def depths(model: nn.Module, head: tuple[str, ...]) -> tuple[dict[str, int], int]:
    """Depth of each parameter and that of the head: 0 embeddings, n block n (from 1), what follows the last block the
    last but one, the head the last. Parameters between two blocks belong to the earlier one.
    """
    blocks = block_names(model)
    last = len(blocks) + 2
    found, reached = {}, 0
    for name, _ in model.named_parameters():
        if set(name.split(".")) & set(head):
            found[name] = last
            continue
        inside = [n for n, block in enumerate(blocks, 1) if f"{name}.".startswith(f"{block}.")]
        if inside:
            reached = inside[0]
        elif reached == len(blocks):
            found[name] = last - 1
            continue
        found[name] = reached
    return found, last


def freeze(model: nn.Module, head: tuple[str, ...], what: str) -> str:
    """Let only a part of `model` learn, as VitTrainConfig.freeze says it; returns a line that says what."""
    places, last = depths(model, head)
    kept = _frozen_depths(what, last)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(places[name] not in kept)
    learning = sum(one.numel() for one in model.parameters() if one.requires_grad)
    total = sum(one.numel() for one in model.parameters())
    return f"{learning:,} of {total:,} weights learn"


def _frozen_depths(what: str, last: int) -> set[int]:
    blocks = last - 2
    if what == "none":
        return set()
    if what == "head":
        return set(range(last))
    if what.startswith("last_"):
        count = int(what.removeprefix("last_"))
        if count > blocks:
            raise UserError(
                f"freeze is {what!r}, but the model has {blocks} blocks.", fix="freeze none, or fewer."
            )
        return set(range(blocks - count + 1))
    kept = set()
    for word in what.split(","):
        first, _, end = word.partition("-")
        numbers = (
            {0} if word == "embeddings" else {int(n) + 1 for n in range(int(first), int(end or first) + 1)}
        )
        if numbers and max(numbers) > blocks:
            raise UserError(
                f"freeze is {what!r}, but the blocks of the model are 0 to {blocks - 1}.", fix="name fewer."
            )
        kept |= numbers
    return kept


def parameter_groups(model: nn.Module, head: tuple[str, ...], config: VitTrainConfig) -> list[dict]:
    """Groups for an optimizer: each depth at its own learning rate, biases and norms without weight decay.

    Layer-wise decay as in BEiT (Bao et al. 2022, arXiv 2106.08254): the rate of depth d is rate * decay^(last - d).
    """
    places, last = depths(model, head)
    groups: dict[tuple[int, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.dim() > 1 and not _NORMS.search(name)
        rate = config.learning_rate * config.layer_decay ** (last - places[name])
        rate *= config.head_factor if places[name] == last else 1.0
        group = groups.setdefault(
            (places[name], decays),
            {"params": [], "lr": rate, "weight_decay": config.weight_decay if decays else 0.0},
        )
        group["params"].append(parameter)
    if not groups:
        raise UserError("Nothing of the model would learn.", fix="set freeze to head, last_4 or none.")
    return [groups[key] for key in sorted(groups)]


def learning_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, one) for name, one in model.named_parameters() if one.requires_grad)
