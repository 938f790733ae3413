"""Previews and notes: from the library's folders, and from nowhere else on the disk."""

from __future__ import annotations

import json

import pytest
import torch
from api_server import served_api
from PIL import Image
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a1111")
    loras = folder / "models" / "Lora"
    loras.mkdir(parents=True)
    weights = {
        "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.zeros(2, 8),
        "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.zeros(8, 2),
    }
    save_file(weights, loras / "mine.safetensors", {"ss_tag": "<b>"})
    Image.new("RGB", (8, 8), "red").save(loras / "mine.preview.png")
    Image.new("RGB", (8, 8), "red").save(folder / "secret.png")
    (loras / "link.png").symlink_to(folder / "secret.png")
    (loras / "notes.txt").write_text("no picture")
    (loras / "page.svg").write_text("<svg/>")
    with served_api(folder) as served:
        yield served


def test_the_list_of_loras_shows_it(api):
    (row,) = api.get("/sdapi/v1/loras").json()
    assert row["name"] == "mine" and row["metadata"]["ss_tag"] == "<b>"


def test_a_preview_is_served_as_a_picture(api):
    path = api.folder / "models" / "Lora" / "mine.preview.png"
    answer = api.get("/sd_extra_networks/thumb", filename=str(path))
    assert answer.status_code == 200 and answer.content == path.read_bytes()
    assert (
        answer.headers["content-type"] == "image/png"
        and answer.headers["x-content-type-options"] == "nosniff"
    )
    again = api.get("/sd_extra_networks/cover-images", page="lora", item="mine", index=0)
    assert again.content == path.read_bytes()


@pytest.mark.parametrize(
    "name",
    [
        "", "/etc/passwd", "models/Lora/../../secret.png", "secret.png", "models/Lora/link.png", "models/Lora",
        "models/Lora/mine.safetensors", "models/Lora/notes.txt", "models/Lora/page.svg", "a\0b.png", "x" * 5000,
    ],
)  # fmt: skip
def test_every_other_file_is_not_there(api, name):
    asked = name if name in ("", "/etc/passwd") or len(name) > 1000 else f"{api.folder}/{name}"
    answer = api.get("/sd_extra_networks/thumb", filename=asked)
    assert answer.status_code == 404 and "There is no preview" in answer.json()["detail"]


def test_metadata_and_card(api):
    told = api.get("/sd_extra_networks/metadata", page="lora", item="mine").json()
    assert json.loads(told["metadata"])["ss_tag"] == "<b>"
    assert api.get("/sd_extra_networks/metadata", page="lora", item="other").json() == {}
    assert "mine" in api.get("/sd_extra_networks/get-single-card", page="lora", name="mine").json()["html"]


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("cover-images", {"page": "lora", "item": "../../secret"}),
        ("cover-images", {"page": "lora", "item": "mine", "index": 5}),
        ("cover-images", {"page": "nothing", "item": "mine"}),
        ("get-single-card", {"page": "lora", "name": "<script>"}),
    ],
)
def test_what_is_not_there_is_404(api, path, query):
    assert api.get(f"/sd_extra_networks/{path}", **query).status_code == 404
