"""The settings as the API shows and changes them: the options, and the model that the service draws with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui.api_errors import Refused
from fastsd_lib.webui.context import ApiContext
from fastsd_lib.webui.options import OPTIONS, READ_ONLY, checked


def shown(context: ApiContext) -> dict[str, Any]:
    """Every option with its value; the model by its title, as lists of models show it."""
    model = context.service.shelf.find()
    of_service = {"sd_model_checkpoint": model.title, "sd_checkpoint_hash": model.known_sha256 or ""}
    return context.options.values() | of_service


def checked_change(context: ApiContext, given: Mapping[str, Any]) -> dict[str, Any]:
    """What `apply` may be given. Refused: unknown names, values that cannot be, models that are not there."""
    found = checked(given)
    for name in READ_ONLY & set(found):
        if found[name] not in (OPTIONS[name].default, shown(context)[name]):
            raise Refused(422, f"{name} cannot be set over HTTP.", "leave it out.")
    writable = {name: value for name, value in found.items() if name not in READ_ONLY}
    if writable.get("sd_model_checkpoint"):
        writable["sd_model_checkpoint"] = find_model(
            context, writable["sd_model_checkpoint"], "sd_model_checkpoint"
        ).name
    if "sd_vae" in writable:
        find_vae(context, writable["sd_vae"])
    return writable


def apply(context: ApiContext, writable: Mapping[str, Any]) -> None:
    """All of it, saved; the model is the one that orders without a name are drawn with from now on."""
    context.options.change(writable)
    if writable.get("sd_model_checkpoint"):
        context.service.shelf.use(writable["sd_model_checkpoint"])


def find_model(context: ApiContext, text: str, where: str) -> Any:
    """A ModelInfo by title, name, file name or hash."""
    try:
        return context.service.shelf.find(str(text))
    except UserError as error:
        raise Refused(404, f"{where}: {error.message}", error.fix) from None


def find_vae(context: ApiContext, text: str, where: str = "sd_vae") -> str:
    """A VAE's name in the library, by name or file name; "" for the model's own."""
    try:
        return context.service.shelf.find_vae(str(text))
    except UserError as error:
        raise Refused(404, f"{where}: {error.message}", error.fix) from None
