"""/sdapi/v1: the lists from which programs fill their menus."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.request import LATENT_UPSCALERS, UPSCALER_LABELS
from fastsd_lib.generation.samplers import SAMPLERS, SCHEDULES
from fastsd_lib.webui.a1111 import known_styles
from fastsd_lib.webui.a1111_scripts import LISTED_ONLY, SCRIPTS
from fastsd_lib.webui.a1111_xyz import ARGUMENTS as PLOT_ARGUMENTS
from fastsd_lib.webui.a1111_xyz import TITLE as PLOT_TITLE
from fastsd_lib.webui.a1111_xyz_axes import axes_of
from fastsd_lib.webui.context import ApiContext

if TYPE_CHECKING:
    from fastsd_lib.generation.embeddings import EmbeddingInfo
    from fastsd_lib.generation.networks import NetworkLibrary

Rows = list[dict[str, Any]]


def router(context: ApiContext) -> APIRouter:
    routes = APIRouter(prefix="/sdapi/v1", tags=["lists"])

    def listed(path: str, make: Callable[[ApiContext], Any], about: str, kind: Any = Rows) -> None:
        async def answer() -> Any:
            return await context.aside(make, context)

        routes.add_api_route(path, answer, methods=["GET"], response_model=kind, summary=about, name=path[1:])

    def refreshed(path: str, work: Callable[[ApiContext], Any]) -> None:
        async def answer() -> None:
            await context.aside(work, context)

        routes.add_api_route(
            path,
            answer,
            methods=["POST"],
            response_model=None,
            summary="Look into the folders again",
            name=path[1:],
        )

    listed("/samplers", lambda _: samplers(), "Samplers")
    listed("/schedulers", lambda _: schedulers(), "Sigma schedules")
    listed("/upscalers", upscalers, "Upscalers of pictures")
    listed("/latent-upscale-modes", lambda _: latent_modes(), "Upscalers of latents")
    listed("/sd-models", models, "Models")
    listed("/sd-vae", vaes, "VAEs")
    listed("/sd-modules", vaes, "VAEs, by Forge's name")
    listed("/hypernetworks", lambda _: [], "Hypernetworks: none are read here")
    listed("/face-restorers", lambda _: [], "Face restorers: there are none")
    listed("/realesrgan-models", lambda _: [], "Models of the old Real-ESRGAN tab; see upscalers")
    listed("/prompt-styles", styles, "Styles")
    listed("/embeddings", embeddings, "Embeddings", dict[str, dict[str, Any]])
    listed("/loras", loras, "LoRA files")
    listed("/scripts", lambda _: scripts(), "Scripts", dict[str, list[str]])
    listed("/script-info", lambda _: script_info(), "The arguments of the scripts")
    listed("/extensions", lambda _: [], "Extensions: none can be installed")
    listed("/artist-categories", lambda _: [], "Gone from A1111 since 2022", list[str])
    listed("/artists", lambda _: [], "Gone from A1111 since 2022")

    refreshed("/refresh-checkpoints", lambda known: known.service.shelf.models())
    refreshed("/refresh-vae", lambda known: known.service.shelf.vaes())
    refreshed("/refresh-embeddings", refresh_networks)
    refreshed("/refresh-loras", refresh_networks)
    return routes


def samplers() -> Rows:
    return [
        {
            "name": sampler.label,
            "aliases": [name, *(alias for alias in sampler.aliases if alias != name)],
            "options": {"scheduler": sampler.schedule},
        }
        for name, sampler in SAMPLERS.items()
    ]


def schedulers() -> Rows:
    return [
        {
            "name": name,
            "label": schedule.label,
            "aliases": [alias for alias in schedule.aliases if alias] or None,
            "default_rho": -1.0 if schedule.rho is None else schedule.rho,
            "need_inner_model": name not in ("karras", "exponential", "polyexponential"),
        }
        for name, schedule in SCHEDULES.items()
    ]


def upscalers(context: ApiContext) -> Rows:
    from fastsd_lib.generation.upscale import upscalers as known

    rows = []
    for upscaler in known(context.service.shelf.folders.upscalers).values():
        try:
            scale = upscaler.scale
        except UserError:  # a file that cannot be read is none to choose
            continue
        rows.append(
            {
                "name": upscaler.name,
                "model_name": None,
                "model_path": upscaler.path.name if upscaler.path else None,
                "model_url": None,
                "scale": scale,
            }
        )
    return rows


def latent_modes() -> Rows:
    return [{"name": UPSCALER_LABELS[name]} for name in LATENT_UPSCALERS]


def models(context: ApiContext) -> Rows:
    return [
        {
            "title": model.title,
            "model_name": model.name,
            "hash": (model.known_sha256 or "")[:10] or None,  # a large file's, once it has been used
            "sha256": model.known_sha256,
            "filename": str(model.path),
            "config": None,
        }
        for model in context.service.shelf.models()
    ]


def vaes(context: ApiContext) -> Rows:
    return [{"model_name": vae.path.name, "filename": str(vae.path)} for vae in context.service.shelf.vaes()]


def styles(context: ApiContext) -> Rows:
    return [
        {"name": style.name, "prompt": style.prompt, "negative_prompt": style.negative_prompt}
        for style in known_styles(context).values()
    ]


def networks_of(context: ApiContext) -> NetworkLibrary:
    return context.service.shelf.library.networks


def refresh_networks(context: ApiContext) -> None:
    networks_of(context).refresh()


def loras(context: ApiContext) -> Rows:
    return [
        {"name": lora.name, "alias": lora.alias, "path": str(lora.path), "metadata": dict(lora.metadata)}
        for lora in networks_of(context).loras()
    ]


def embeddings(context: ApiContext) -> dict[str, dict[str, Any]]:
    library = networks_of(context)
    loaded = {one.name: _embedding(one) for one in library.embeddings()}
    return {"loaded": loaded, "skipped": {name: _nothing() for name in library.skipped()}}


def _embedding(one: EmbeddingInfo) -> dict[str, Any]:
    return {
        "step": one.step,
        "sd_checkpoint": one.sd_checkpoint,
        "sd_checkpoint_name": one.sd_checkpoint_name,
        "shape": one.widths[-1],
        "vectors": one.count,
    }


def _nothing() -> dict[str, Any]:
    return {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None, "shape": 0, "vectors": 0}


def scripts() -> dict[str, list[str]]:
    names = [*SCRIPTS, *LISTED_ONLY]
    return {"txt2img": names, "img2img": list(names)}


def script_info() -> Rows:
    rows = []
    for over, kind in ((False, "txt2img"), (True, "img2img")):
        axes = [axis.label for axis in axes_of(kind)]
        plot = [(label, value, axes if label.endswith(" type") else None) for label, value in PLOT_ARGUMENTS]
        arguments = _SCRIPT_ARGUMENTS | {PLOT_TITLE.lower(): plot}
        rows += [
            {
                "name": name,
                "is_alwayson": False,
                "is_img2img": over,
                "args": [_argument(*one) for one in arguments[name]],
            }
            for name in SCRIPTS
        ]
    return rows + [
        {"name": "controlnet", "is_alwayson": True, "is_img2img": over, "args": []} for over in (False, True)
    ]


_SCRIPT_ARGUMENTS = {
    "prompt matrix": [
        ("Put variable parts at start of prompt", False, None),
        ("Use different seed for each picture", False, None),
        ("Select prompt", "positive", ["positive", "negative"]),
        ("Select joining char", "comma", ["comma", "space"]),
    ],
    "prompts from file or textbox": [
        ("Iterate seed every line", False, None),
        ("Use same random seed for all lines", False, None),
        ("Insert prompts at the", "start", ["start", "end"]),
        ("List of prompt inputs", "", None),
    ],
}


def _argument(label: str, value: Any, choices: list[str] | None) -> dict[str, Any]:
    return {
        "label": label,
        "value": value,
        "minimum": None,
        "maximum": None,
        "step": None,
        "choices": choices,
    }
