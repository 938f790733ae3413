"""The weights of a model folder as a PyTorch model, with every tensor accounted for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel
from transformers.utils import logging

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.model import VitModel


def load(
    model: VitModel,
    attention: str,
    dtype: torch.dtype | str | None,
    device: str,
    labels: tuple[str, ...] | None,
) -> PreTrainedModel:
    """See `model.load_torch`."""
    extra: dict[str, Any] = {}
    if labels is not None:
        extra = {"id2label": dict(enumerate(labels)), "label2id": {one: n for n, one in enumerate(labels)}}
    made_by = _class_of(model, labels is not None)
    with _without_progress_bar():
        loaded, told = made_by.from_pretrained(
            model.path, attn_implementation=_attention_for(made_by, attention), dtype=dtype or torch.float32,
            use_safetensors=True, local_files_only=True, trust_remote_code=False, ignore_mismatched_sizes=True,
            output_loading_info=True, **extra,
        )  # fmt: skip
    _all_accounted_for(model, told, new_head=labels is not None)
    return loaded.eval().to(device)


def _attention_for(made_by: Any, attention: str) -> str:
    """ConvNeXt has no attention, and some models only the plain kind."""
    return attention if attention != "sdpa" or getattr(made_by, "_supports_sdpa", True) else "eager"


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """transformers draws one for every model, even where it takes a tenth of a second."""
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # what is missing is told by us
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _class_of(model: VitModel, needs_head: bool) -> Any:
    if needs_head and not model.labels:
        return transformers.AutoModelForImageClassification
    found = getattr(transformers, model.architecture, None)
    return found or (transformers.AutoModelForImageClassification if model.labels else transformers.AutoModel)


def _all_accounted_for(model: VitModel, told: dict[str, Any], *, new_head: bool) -> None:
    def counted(keys: Any) -> list[str]:
        names = [key if isinstance(key, str) else key[0] for key in keys]
        return sorted(
            name for name in names if "pooler" not in name and not (new_head and "classifier" in name)
        )

    wrongs = {
        "missing_keys": "lacks",
        "unexpected_keys": "has a weight too many",
        "mismatched_keys": "has another shape of",
    }
    for kind, what in wrongs.items():
        if names := counted(told.get(kind, ())):
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(
                f"{model.path} {what}: {names[0]}{more}.", fix="download or save the model again."
            )
