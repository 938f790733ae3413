"""What the server tells of itself: its model and limits, its numbers, its schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from fastsd_lib.webui.vit_server.bodies import ErrorAnswer
from fastsd_lib.webui.vit_server.metrics import family, sample

if TYPE_CHECKING:
    from fastsd_lib.webui.vit_server.service import VitService

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": about}
    for status, about in {
        400: "The body is no JSON",
        401: "A password is needed",
        408: "The body did not come in time",
        413: "Too large, or too many pictures",
        415: "Neither JSON nor a picture",
        422: "A value that cannot be; no picture",
        429: "Too many requests of one client",
        503: "No room, or ending; Retry-After says when to come again",
        504: "No answer in time",
    }.items()
}


def info(service: VitService) -> dict[str, Any]:
    model, config = service.model, service.config
    return {
        "model": model.name,
        "architecture": model.architecture,
        "labels": len(model.labels),
        "label_names": list(model.labels[:1000]),
        "image_px": list(model.image_px),
        "parameters": model.parameters,
        "multi_label": model.multi_label,
        "calibrated": model.temperature is not None,
        "runner": service.runner.name,
        "tasks": ["image-classification", "image-feature-extraction"],
        "limits": {
            "max_batch": config.max_batch,
            "queue_limit": config.queue_limit,
            "pictures_per_request": config.pictures_per_request,
            "body_bytes": config.body_mib << 20,
            "picture_pixels": config.picture_pixels,
            "picture_side_px": config.picture_side_px,
            "timeout_s": config.timeout_s,
            "fetches_urls": config.fetch_urls,
        },
    }


def metrics(service: VitService) -> str:
    """In Prometheus's text format."""
    return "\n".join(_families(service)) + "\n"


def _families(service: VitService) -> Iterator[str]:
    noted, batchers = service.metrics, service.batchers
    model = {"model": service.model.name, "runner": service.runner.name}
    yield from family("fastsd_vit_info", "gauge", "What is served.", [sample("fastsd_vit_info", model, 1)])
    name = "fastsd_vit_requests_total"
    yield from family(name, "counter", "Requests by route and status.", [
        sample(name, {"route": route, "status": str(status)}, count)
        for (route, status), count in list(noted.requests.items())
    ])  # fmt: skip
    name = "fastsd_vit_request_seconds"
    yield from family(name, "histogram", "From the request's head to its answer.", [
        line for route, found in list(noted.seconds.items()) for line in found.lines(name, {"route": route})
    ])  # fmt: skip
    name = "fastsd_vit_decode_seconds"
    yield from family(name, "histogram", "From a picture's file to pixels.", noted.decoding.lines(name, {}))
    name = "fastsd_vit_pictures_total"
    counts = [sample(name, {"output": output}, noted.pictures[output]) for output in batchers]
    yield from family(name, "counter", "Pictures that were answered.", counts)
    name = "fastsd_vit_batches_total"
    yield from family(name, "counter", "Calls of the model by their number of pictures.", [
        sample(name, {"output": output, "pictures": str(size)}, count)
        for output, batcher in batchers.items() for size, count in sorted(batcher.sizes.items())
    ])  # fmt: skip
    for name, kind, about, value in (
        ("fastsd_vit_model_seconds_total", "counter", "Time in the model.", lambda one: one.computed_s),
        (
            "fastsd_vit_waiting_pictures",
            "gauge",
            "Pictures that wait for the model.",
            lambda one: one.waiting,
        ),
        ("fastsd_vit_running_pictures", "gauge", "Pictures in the model.", lambda one: one.running),
    ):
        samples = [sample(name, {"output": output}, value(one)) for output, one in batchers.items()]
        yield from family(name, kind, about, samples)
    name = "fastsd_vit_requests_under_way"
    yield from family(
        name, "gauge", "Requests that are not answered yet.", [sample(name, {}, service.under_way)]
    )


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """JSON schema without references: it stands inside one route."""
    schema = model.model_json_schema()
    return _inlined(schema, schema.pop("$defs", {}))


def query_of(parameters: type[BaseModel]) -> list[dict[str, Any]]:
    """The same parameters in the address, for a body that is a picture."""
    return [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in schema_of(parameters)["properties"].items()
    ]


def _inlined(schema: Any, known: dict[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_inlined(one, known) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(known[schema["$ref"].rpartition("/")[2]], known)
    return {key: _inlined(value, known) for key, value in schema.items()}
