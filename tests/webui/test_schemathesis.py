"""Every route of the whole app, asked with whatever its own description allows and more: never a 5xx, never a hang.

The app is served behind the guard on a real port, with limits so low that whatever is drawn is tiny.
"""

from __future__ import annotations

import os

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import none, one_of, sampled_from, sets
from own_api import coded, picture
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance

from fastsd_lib.generation.history import History
from fastsd_lib.generation.jobs import QueueLimits
from fastsd_lib.generation.library import LibraryFolders
from fastsd_lib.generation.resources import Library
from fastsd_lib.generation.service import Service
from fastsd_lib.generation.shelf import Shelf
from fastsd_lib.webui.api import api_app
from fastsd_lib.webui.context import ApiLimits
from fastsd_lib.webui.door import LOOPBACK
from fastsd_lib.webui.server import serve_app

LIMITS = ApiLimits(
    picture_pixels=256 * 256, picture_side_px=512, picture_bytes=2**20, side_px=128, pixels=128 * 128, pictures=2,
    steps=4,
)  # fmt: skip
LONGEST_S = 20  # of one answer on a busy machine; drawing is cut off after LIMIT_S
LIMIT_S = 0.5
EXAMPLES = int(os.environ.get("FASTSD_SCHEMATHESIS_EXAMPLES", "8"))  # of each route


@pytest.fixture(scope="module")
def api(tiny_pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    shelf = Shelf(Library.of(LibraryFolders.under(folder)), tiny_pipeline, device="cpu")
    limits = QueueLimits(most_seconds=LIMIT_S, most_waiting=64)
    service = Service(shelf, History(folder / "history.sqlite"), limits, devices=("cpu",))
    server = serve_app(api_app(service, pictures_dir=folder / "pictures", limits=LIMITS), LOOPBACK, None)
    yield schemathesis.openapi.from_url(f"{server.url}openapi.json")
    server.close()
    service.close()
    service.history.close()


PICTURE = coded(picture(16, 16))
#: What makes a random body one that is drawn, or at least read to the end.
USUAL = {
    "width": 64, "height": 64, "steps": 2, "batch_size": 1, "n_iter": 1, "sampler_name": None, "scheduler": None,
    "image": PICTURE, "mask": None, "init_images": [PICTURE], "firstpass_image": None, "model": "", "vae": "",
    "controlnet_input_images": [PICTURE], "controlnet_masks": [], "imageList": [{"data": PICTURE}], "init": None,
    "inference_steps": 2, "width_px": 64, "height_px": 64, "sampler": "ddim", "schedule": "automatic", "count": 1,
    "a1111": None, "inpaint": None, "control": [], "id": None, "upscaler_1": "Lanczos", "override_settings": {},
    "script_name": None, "alwayson_scripts": {}, "styles": [], "infotext": None, "refiner_checkpoint": None,
}  # fmt: skip


def tamed(body, kept: set[str]):
    """The body with usual values for all fields that it has, but for those in `kept`."""
    if not isinstance(body, dict):
        return body
    return {
        name: USUAL[name] if name in USUAL and name not in kept else value for name, value in body.items()
    }


KEPT = none() | sets(sampled_from(sorted(USUAL)), max_size=3)
OPERATIONS = [(path, verb) for path, verbs in api_app(None).openapi()["paths"].items() for verb in verbs]


@pytest.mark.parametrize(("path", "verb"), OPERATIONS, ids=[f"{verb} {path}" for path, verb in OPERATIONS])
def test_no_route_fails_or_hangs(api, path, verb):
    @settings(
        max_examples=EXAMPLES, derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate],
    )  # fmt: skip
    @given(  # a half is sent as it comes, a half with a few odd values among usual ones
        case=one_of(api[path][verb].as_strategy(generation_mode=mode) for mode in GenerationMode),
        kept=KEPT,
    )
    def ask(case, kept):
        if kept is not None:
            case.body = tamed(case.body, kept)
        reply = case.call(timeout=LONGEST_S)
        case.validate_response(reply, checks=[not_a_server_error, response_schema_conformance])
        if reply.status_code >= 400:
            said = reply.json()
            assert set(said) >= {"error", "detail", "body", "errors"}, reply.text
            assert isinstance(said["detail"], str) and "Traceback" not in reply.text

    ask()
