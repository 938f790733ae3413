"""ComfyUI's graphs -> the settings of the picture that they drew. A graph is data: nothing of it is run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

MOST_NODES = 5_000
MOST_SAMPLERS = 50

Node = Mapping[str, Any]  # {"class_type": str, "inputs": {name: value or [node, output]}}

_TEXTS = ("text", "text_g", "text_l", "t5xxl", "prompt", "string", "value", "string_a")
_GUIDANCE = ("positive", "conditioning")  # ways to the prompt
_NEITHER = (
    "positive",
    "negative",
    "conditioning",
)  # not followed when a sampler's own settings are looked for
# The widgets of a saved workflow have no names, only an order; None = a widget that is no setting.
_WIDGETS: dict[str, tuple[str | None, ...]] = {
    "KSampler": ("seed", None, "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerAdvanced": (None, "noise_seed", None, "steps", "cfg", "sampler_name", "scheduler"),
    "CLIPTextEncode": ("text",),
    "EmptyLatentImage": ("width", "height"),
    "EmptySD3LatentImage": ("width", "height"),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "UNETLoader": ("unet_name",),
    "VAELoader": ("vae_name",),
    "LoraLoader": ("lora_name", "strength_model", "strength_clip"),
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "CLIPSetLastLayer": ("stop_at_clip_layer",),
    "RandomNoise": ("noise_seed",),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "KSamplerSelect": ("sampler_name",),
    "CFGGuider": ("cfg",),
    "FluxGuidance": ("guidance",),
    "PrimitiveNode": ("value",),
}


def settings_of_prompt(graph: Any) -> dict[str, Any]:
    """A1111's keys for what the graph of an executed prompt says; {} when it has no sampler."""
    nodes = {str(key): node for key, node in _items(graph) if isinstance(node, dict)}
    samplers = [key for key, node in nodes.items() if "sampler" in _class(node).lower() and _inputs(node)]
    samplers = [key for key in samplers if {"steps", "sigmas"} & set(_inputs(nodes[key]))][:MOST_SAMPLERS]
    if not samplers:
        return {}
    first = next((key for key in samplers if not _later_pass(nodes, key, samplers)), samplers[0])
    found = _sampler_settings(nodes, first)
    later = [key for key in samplers if key != first]
    if later:
        second = _sampler_settings(nodes, later[-1])
        found["Denoising strength"] = second.get("Denoising strength")
        found["Hires steps"] = second.get("Steps")
    return {key: value for key, value in found.items() if value is not None}


def settings_of_workflow(workflow: Any) -> dict[str, Any]:
    """The same from the graph as the editor saves it; only of nodes whose widgets are known here."""
    if not isinstance(workflow, dict):
        return {}
    sources = {}
    for link in _list(workflow.get("links")):
        if isinstance(link, list) and len(link) >= 3:
            sources[str(link[0])] = [str(link[1]), link[2]]
    graph = {}
    for node in _list(workflow.get("nodes")):
        if not isinstance(node, dict) or not isinstance(node.get("type"), str):
            continue
        inputs: dict[str, Any] = {}
        names = _WIDGETS.get(node["type"], ())
        for name, value in zip(names, _list(node.get("widgets_values")), strict=False):
            if name:
                inputs[name] = value
        for one in _list(node.get("inputs")):
            if isinstance(one, dict) and str(one.get("link")) in sources:
                inputs[str(one.get("name"))] = sources[str(one["link"])]
        graph[str(node.get("id"))] = {"class_type": node["type"], "inputs": inputs}
    return settings_of_prompt(graph)


def _sampler_settings(nodes: Mapping[str, Node], key: str) -> dict[str, Any]:
    inputs = _inputs(nodes[key])
    guider = _inputs(nodes.get(_source(inputs.get("guider")), {}))
    own = list(_upstream(nodes, key, without=(*_NEITHER, "latent_image")))
    latent = list(_upstream(nodes, _source(inputs.get("latent_image"))))
    positive = next((ways[way] for ways in (inputs, guider) for way in _GUIDANCE if way in ways), None)
    negative = inputs.get("negative", guider.get("negative"))
    width, height = _number(nodes, latent, "width"), _number(nodes, latent, "height")
    skip = _number(nodes, [*own, *_upstream(nodes, _source(positive))], "stop_at_clip_layer")
    denoise = _number(nodes, own, "denoise")
    prompt = " ".join([_said(nodes, _source(positive)), *_loras(nodes, own)]).strip()
    return {
        "Prompt": prompt,
        "Negative prompt": _said(nodes, _source(negative)),
        "Steps": _number(nodes, own, "steps"),
        "Sampler": _word(nodes, own, "sampler_name"),
        "Schedule type": _word(nodes, own, "scheduler"),
        "CFG scale": _number(nodes, own, "cfg"),
        "Distilled CFG Scale": _number(nodes, list(_upstream(nodes, _source(positive))), "guidance"),
        "Seed": _number(nodes, own, "seed", "noise_seed"),
        "Size": f"{width}x{height}" if width and height else None,
        "Model": _word(nodes, own, "ckpt_name", "unet_name", "model_name"),
        "VAE": _word(nodes, [key for key in nodes if "VAELoader" in _class(nodes[key])], "vae_name"),
        "Denoising strength": denoise if denoise != 1 else None,
        "Clip skip": -int(skip) if skip is not None and skip < -1 else None,
    }


def _later_pass(nodes: Mapping[str, Node], key: str, samplers: list[str]) -> bool:
    """Whether this sampler goes on with what another one drew."""
    latent = _source(_inputs(nodes[key]).get("latent_image"))
    return any(one in samplers for one in _upstream(nodes, latent))


def _upstream(nodes: Mapping[str, Node], key: str, without: tuple[str, ...] = ()) -> Iterator[str]:
    """A node and all that flows into it, nearest first, each once: graphs may have rings."""
    waiting, seen = [key], {key}
    for current in waiting:
        if current not in nodes or len(seen) > MOST_NODES:
            continue
        yield current
        for name, value in _inputs(nodes[current]).items():
            source = _source(value)
            if name not in without and source in nodes and source not in seen:
                seen.add(source)
                waiting.append(source)


def _said(nodes: Mapping[str, Node], key: str) -> str:
    """The texts that flow into a conditioning, nearest first; combined ones are joined as A1111 would."""
    texts: list[str] = []
    joint = ", "
    for one in _upstream(nodes, key, without=("clip", "model", "control_net", "image", "vae", "pixels")):
        joint = {"ConditioningCombine": " AND ", "ConditioningConcat": " BREAK "}.get(
            _class(nodes[one]), joint
        )
        inputs = _inputs(nodes[one])
        texts += [text for name in _TEXTS if isinstance(text := inputs.get(name), str) and text]
    return joint.join(dict.fromkeys(texts))


def _loras(nodes: Mapping[str, Node], keys: list[str]) -> list[str]:
    tags = []
    for key in keys:
        name, inputs = _inputs(nodes[key]).get("lora_name"), _inputs(nodes[key])
        if isinstance(name, str):
            unet = inputs.get("strength_model", 1.0)
            clip = inputs.get("strength_clip", unet)
            stem = name.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".safetensors")
            if _is_number(unet) and _is_number(clip):
                tags.append(f"<lora:{stem}:{clip}>" if clip == unet else f"<lora:{stem}:{clip}:{unet}>")
    return tags[::-1]


def _number(nodes: Mapping[str, Node], keys: list[str], *names: str) -> int | float | None:
    for key in keys:
        for name in names:
            value = _inputs(nodes[key]).get(name)
            if _source(value) in nodes:  # a value that comes from a node of its own
                value = next(
                    (one for one in _inputs(nodes[_source(value)]).values() if _is_number(one)), None
                )
            if _is_number(value):
                return value
    return None


def _word(nodes: Mapping[str, Node], keys: list[str], *names: str) -> str | None:
    words = (_inputs(nodes[key]).get(name) for key in keys for name in names)
    return next((word for word in words if isinstance(word, str) and word), None)


def _source(value: Any) -> str:
    """The node that an input comes from; "" when it is a value."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], (str, int)):
        return str(value[0])
    return ""


def _inputs(node: Any) -> dict[str, Any]:
    inputs = node.get("inputs") if isinstance(node, dict) else None
    return inputs if isinstance(inputs, dict) else {}


def _class(node: Node) -> str:
    return str(node.get("class_type", ""))


def _items(value: Any) -> list[tuple[Any, Any]]:
    return list(value.items())[:MOST_NODES] if isinstance(value, dict) else []


def _list(value: Any) -> list[Any]:
    return value[: 10 * MOST_NODES] if isinstance(value, list) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e20
