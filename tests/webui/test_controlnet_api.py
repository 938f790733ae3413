"""The routes of the ControlNet extension, as its clients call them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from own_api import client_of, coded, context_of, decoded, picture
from PIL import Image

from fastsd_lib.generation.control_modules import MODULES
from fastsd_lib.generation.library import LibraryFolders
from fastsd_lib.generation.preprocessors import preprocess
from fastsd_lib.webui import controlnet_api

TYPES = [
    "All", "Canny", "Depth", "NormalMap", "OpenPose", "MLSD", "Lineart", "SoftEdge", "Scribble", "Segmentation",
    "Shuffle", "Tile", "Inpaint", "InstructP2P", "Reference", "Recolor", "Revision", "T2I-Adapter", "IP-Adapter",
    "Instant-ID", "SparseCtrl",
]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return LibraryFolders.under(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def client(tiny_pipeline, folders):
    context = context_of(tiny_pipeline, folders)
    _save_control_net(tiny_pipeline, folders.controlnets[0] / "tiny_canny")
    yield client_of(context, controlnet_api.router)
    context.service.close()


def _save_control_net(model, folder):
    from diffusers.models.controlnets.controlnet import ControlNetModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_pretrained(model.path / "unet")
    ControlNetModel.from_unet(unet).save_pretrained(folder)


def test_version_and_settings(client):
    assert client.get("/controlnet/version").json() == {"version": 3}
    assert client.get("/controlnet/settings").json() == {"control_net_unit_count": 3}


def test_models_have_titles_with_a_hash_and_new_ones_are_found_when_asked(client, folders, tiny_pipeline):
    (title,) = client.get("/controlnet/model_list").json()["model_list"]
    name, _, rest = title.partition(" [")
    assert name == "tiny_canny" and len(rest) == 9 and rest.endswith("]") and int(rest[:8], 16) >= 0
    _save_control_net(tiny_pipeline, folders.controlnets[0] / "another")
    assert len(client.get("/controlnet/model_list?update=false").json()["model_list"]) == 1
    assert len(client.get("/controlnet/model_list?update=true").json()["model_list"]) == 2


def test_modules_come_with_their_sliders(client):
    found = client.get("/controlnet/module_list").json()
    assert found["module_list"] == list(MODULES) and list(found["module_detail"]) == list(MODULES)
    assert found["module_detail"]["canny"] == {
        "model_free": False,
        "sliders": [
            {"name": "Preprocessor Resolution", "value": 512, "min": 64, "max": 2048},
            {"name": "Low Threshold", "value": 100, "min": 1, "max": 255},
            {"name": "High Threshold", "value": 200, "min": 1, "max": 255},
        ],
    }
    assert found["module_detail"]["reference_only"]["model_free"] is True
    assert found["module_detail"]["reference_only"]["sliders"][0] is None
    shown = client.get("/controlnet/module_list?alias_names=true").json()
    assert "invert (from white bg & black line)" in shown["module_list"]
    assert list(shown["module_detail"]) == shown["module_list"]


def test_the_types_are_a1111s_in_its_order(client):
    found = client.get("/controlnet/control_types").json()["control_types"]
    assert list(found) == TYPES
    (title,) = [one for one in found["Canny"]["model_list"] if "canny" in one]
    assert found["Canny"] == {
        "module_list": ["none", "canny", "invert"], "model_list": ["None", title],
        "default_option": "canny", "default_model": title,
    }  # fmt: skip
    assert found["All"]["module_list"] == list(MODULES) and title in found["All"]["model_list"]
    assert (found["All"]["default_option"], found["All"]["default_model"]) == ("none", "None")
    assert found["Revision"] == {
        "module_list": ["none"], "model_list": ["None"], "default_option": "none", "default_model": "None"
    }  # fmt: skip


@pytest.mark.parametrize("field", ["controlnet_input_images", "controlnet_images"])
def test_detect_makes_the_control_picture_under_either_name(client, field):
    body = {"controlnet_module": "canny", field: [coded(picture(80, 64))], "controlnet_processor_res": 64,
            "controlnet_threshold_a": 50, "controlnet_threshold_b": 120, "low_vram": True}  # fmt: skip
    reply = client.post("/controlnet/detect", json=body)
    assert reply.status_code == 200 and reply.json()["info"] == "Success", reply.text
    (sent,) = reply.json()["images"]
    expected = preprocess(picture(80, 64), "canny", resolution_px=64, a=50, b=120)
    assert decoded(sent).tobytes() == expected.tobytes() and np.asarray(expected).any()


def test_detect_answers_for_each_picture_at_the_usual_resolution(client):
    images = [coded(picture(seed=seed)) for seed in range(2)]
    reply = client.post("/controlnet/detect", json={"controlnet_module": "lineart_standard (from white bg & "
                        "black line)", "controlnet_input_images": images, "controlnet_processor_res": -1})  # fmt: skip
    assert [min(decoded(one).size) for one in reply.json()["images"]] == [512, 512]


def test_detect_for_inpainting_hides_what_the_mask_marks(client):
    mask = Image.new("L", (40, 28))
    mask.paste(255, (0, 0, 20, 28))
    body = {"controlnet_module": "inpaint_only", "controlnet_input_images": [coded(picture())],
            "controlnet_masks": [coded(mask)]}  # fmt: skip
    (sent,) = client.post("/controlnet/detect", json=body).json()["images"]
    levels, own = np.asarray(decoded(sent)), np.asarray(picture())
    assert not levels[:, :20].any() and np.array_equal(levels[:, 20:], own[:, 20:])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"controlnet_input_images": []}, "No image selected"),
        (
            {"controlnet_module": "cany"},
            "Module not available: There is no preprocessor 'cany'. Nearest: canny",
        ),
        ({"controlnet_module": "openpose_full"}, "Module not supported"),
        ({"controlnet_module": "ip-adapter_clip_sd15"}, "Module not supported"),
        (
            {"controlnet_module": "depth_midas"},
            "Module not supported: The preprocessor depth needs a network",
        ),
        ({"controlnet_module": "inpaint_only"}, "inpaint_only needs masks"),
        ({"controlnet_masks": ["a", "b"]}, "There are 1 pictures and 2 masks"),
        ({"controlnet_input_images": ["bm8="]}, "controlnet_input_images.0 is no picture"),
        ({"controlnet_input_images": ["/etc/passwd"]}, "Invalid encoded image"),
        ({"controlnet_input_images": ["https://example.org/a.png"]}, "this server fetches none"),
        ({"controlnet_threshold_a": 999}, "threshold_a (Low Threshold) of canny is 999"),
        ({"controlnet_processor_res": 100000}, "controlnet_processor_res"),
        ({"controlnet_processor_res": 3}, "resolution_px of canny is 3"),
        ({"controlnet_input_images": ["x"] * 65}, "controlnet_input_images"),
    ],
)
def test_what_cannot_be_detected_is_refused_by_its_name(client, fields, said):
    body = {"controlnet_module": "canny", "controlnet_input_images": [coded(picture())], **fields}
    reply = client.post("/controlnet/detect", json=body)
    assert reply.status_code == 422 and said in reply.json()["detail"], reply.text


def test_poses_are_drawn(client):
    points = [50, 50, 1] + [0, 0, 0] * 17
    poses = [{"people": [{"pose_keypoints_2d": points, "hand_left_keypoints_2d": None}], "canvas_width": 100,
              "canvas_height": 80}, {"canvas_width": 16, "canvas_height": 16}]  # fmt: skip
    reply = client.post("/controlnet/render_openpose_json", json=poses)
    assert reply.status_code == 200 and reply.json()["info"] == "Success", reply.text
    first, second = (decoded(one) for one in reply.json()["images"])
    assert first.size == (100, 80) and first.getpixel((50, 50)) == (255, 0, 0)
    assert second.size == (16, 16) and not np.asarray(second).any()


@pytest.mark.parametrize(
    ("pose", "said"),
    [
        ({"canvas_width": 100}, "canvas_height"),
        ({"canvas_width": 100_000, "canvas_height": 100_000}, "canvas_width"),
        ({"people": [{"pose_keypoints_2d": [1, 2]}]}, "0.people.0.pose_keypoints_2d has 2 numbers"),
        ({"people": [{"pose_keypoints_2d": [1, 2, "x"]}]}, "pose_keypoints_2d"),
        ({"people": [{}] * 101}, "people"),
        ({"animals": [[]]}, "animals"),
    ],
)
def test_poses_that_cannot_be_drawn_are_refused(client, pose, said):
    reply = client.post(
        "/controlnet/render_openpose_json", json=[{"canvas_width": 64, "canvas_height": 64} | pose]
        if "canvas_width" not in pose else [pose],
    )  # fmt: skip
    assert reply.status_code == 422 and said in reply.json()["detail"], reply.text


def test_unknown_keys_are_tolerated(client):
    body = {"controlnet_input_images": [coded(picture())], "something": 1}
    reply = client.post("/controlnet/detect", json=body)
    assert decoded(reply.json()["images"][0]).tobytes() == picture().tobytes()  # module "none"
