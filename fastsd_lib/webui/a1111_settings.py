"""The settings as the API shows and changes them: the options, and the model that the service draws with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui.api_errors import Refused
from fastsd_lib.webui.context import ApiContext
from fastsd_lib.webui.options import OPTIONS, READ_ONLY, checked

OWN_VAE = ("", "automatic", "none")  # the one that came with the model


def shown(context: ApiContext) -> dict[str, Any]:
    """Every option with its value; the model by its title, as lists of models show it."""
    model = context.service.shelf.find()
    of_service = {"sd_model_checkpoint": model.title, "sd_checkpoint_hash": model.sha256}
    return context.options.values() | of_service


def change(context: ApiContext, given: Mapping[str, Any]) -> None:
    """All of `given` or nothing. Refused: unknown names, values that cannot be, models that are not there."""
    checked(given)
    for name in READ_ONLY & set(given):
        if given[name] != OPTIONS[name].default and given[name] != shown(context)[name]:
            raise Refused(422, f"{name} cannot be set over HTTP.", "leave it out.")
    writable = {name: value for name, value in given.items() if name not in READ_ONLY}
    model = writable.get("sd_model_checkpoint")
    if model:
        writable["sd_model_checkpoint"] = find_model(context, model, "sd_model_checkpoint").name
    if writable.get("sd_vae"):
        find_vae(context, writable["sd_vae"])
    context.options.change(writable)
    if model:
        context.service.shelf.use(writable["sd_model_checkpoint"])


def find_model(context: ApiContext, text: str, where: str) -> Any:
    """A ModelInfo by title, name, file name or hash."""
    try:
        return context.service.shelf.find(str(text))
    except UserError as error:
        raise Refused(404, f"{where}: {error.message}", error.fix) from None


def find_vae(context: ApiContext, text: str) -> str:
    """A VAE's name in the library, by name or file name; "" for the model's own."""
    wanted = str(text).strip()
    if wanted.lower() in OWN_VAE:
        return ""
    vaes = context.service.shelf.vaes()
    for vae in vaes:
        if wanted in (vae.name, vae.path.name):
            return vae.name
    known = ", ".join(["Automatic", *(vae.path.name for vae in vaes)])
    raise Refused(404, f"sd_vae: No VAE {wanted[:100]!r}.", f"take one of: {known}.")
