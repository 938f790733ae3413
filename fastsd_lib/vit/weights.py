"""The weights of a model folder as a PyTorch model, with every tensor accounted for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel
from transformers.utils import logging

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.text import escaped
from fastsd_lib.vit import model_config
from fastsd_lib.vit.model import VitModel

_WRONGS = {
    "missing_keys": "lacks",
    "unexpected_keys": "has a weight that this kind of model does not:",
    "mismatched_keys": "has another shape of",
}
_HEADS = ("classifier", "head.", "cls_classifier", "distillation_classifier")


def load(
    model: VitModel,
    attention: str,
    dtype: torch.dtype | str | None,
    device: str,
    labels: tuple[str, ...] | None,
) -> PreTrainedModel:
    """See `model.load_torch`."""
    _refuse_giant_configs(model)
    made_by = _class_of(model, needs_head=labels is not None)
    extra: dict[str, Any] = {}
    if labels is not None:
        extra = {"id2label": dict(enumerate(labels)), "label2id": {one: n for n, one in enumerate(labels)}}
    try:
        with in_silence():
            loaded, told = made_by.from_pretrained(
                model.path, attn_implementation=_attention_for(made_by, attention), dtype=dtype or torch.float32,
                use_safetensors=True, local_files_only=True, trust_remote_code=False, ignore_mismatched_sizes=True,
                output_loading_info=True, **extra,
            )  # fmt: skip
    except UserError:
        raise
    except Exception as error:  # a config of strange values makes transformers raise nearly anything
        reason = escaped((str(error).strip() or type(error).__name__).splitlines()[0][:160])
        raise UserError(
            f"transformers cannot load {model.path}: {reason}",
            fix="download or save the model again; models that bring code of their own are not run.",
        ) from None
    _account_for_all(model, told, new_head=labels is not None)
    return loaded.eval().to(device)


def _class_of(model: VitModel, *, needs_head: bool) -> Any:
    """transformers' class that the model was saved from; for a head on a bare model, the one that has a head."""
    if needs_head and not model.labels:
        return transformers.AutoModelForImageClassification
    found = getattr(transformers, model.architecture, None)
    if isinstance(found, type) and issubclass(found, PreTrainedModel):
        return found
    return transformers.AutoModelForImageClassification if model.labels else transformers.AutoModel


def _attention_for(made_by: Any, attention: str) -> str:
    """ConvNeXt has no attention, and some models only the plain kind."""
    return attention if attention != "sdpa" or getattr(made_by, "_supports_sdpa", True) else "eager"


@contextmanager
def in_silence() -> Iterator[None]:
    """transformers draws a bar for every model and warns of what is told here as an error."""
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _refuse_giant_configs(model: VitModel) -> None:
    """A config that describes a far larger model than its weights are would only fill the memory."""
    described = model_config.sizes(model.path).parameters
    if described > 2 * model.parameters + 1_000_000:
        raise UserError(
            f"{model.path} does not fit together: its config.json describes {described:,} weights or more,"
            f" its file holds {model.parameters:,}.",
            fix="download or copy the whole model again.",
        )


def _account_for_all(model: VitModel, told: dict[str, Any], *, new_head: bool) -> None:
    """Every weight of the file is used and none is made up, but for a pooler, which classifiers do without."""
    for kind, what in _WRONGS.items():
        if names := _counted(told.get(kind, ()), new_head):
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(
                f"{model.path} {what} {escaped(names[0])}{more}.",
                fix="download or save the model again, or take another one.",
            )


def _counted(keys: Iterable[Any], new_head: bool) -> list[str]:
    names = [key if isinstance(key, str) else str(key[0]) for key in keys]
    return sorted(
        name for name in names if "pooler" not in name and not (new_head and name.startswith(_HEADS))
    )
