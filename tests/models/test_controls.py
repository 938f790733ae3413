"""ControlNets and adapters that have a name: the lists of the older notebooks, and the one for a purpose and base model."""

from __future__ import annotations

import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.model_files import FAMILY_NAMES
from fastsd_lib.models import controls
from fastsd_lib.models.controls import KnownControl, controls_for, known_controls, pick_control
from fastsd_lib.models.known_models import hub_source, read_entries

# The three dropdowns of fast-stable-diffusion's notebook, by our words.
V1 = ["canny", "depth", "lineart", "mlsd", "normal", "openpose", "scribble", "seg", "ip2p", "shuffle", "inpaint",
      "softedge", "lineart_anime", "tile"]  # fmt: skip
T2I = ["keypose", "seg", "sketch", "depth", "canny", "color", "style", "openpose"]
V2 = ["canny", "depth", "hed", "openpose", "scribble"]
XL = ["canny", "depth", "sketch", "openpose", "recolor"]


def test_the_list_is_read_the_same_by_the_strict_reader_and_no_name_comes_twice():
    assert read_entries(KnownControl, controls.BUNDLED) == known_controls()
    names = [one.name for one in known_controls()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("family", "kind", "wanted"),
    [
        ("sd1", "controlnet", V1),
        ("sd1", "t2i-adapter", T2I),
        ("sd2", "controlnet", V2),
        ("sdxl", None, XL),
        ("sdxl", "controlnet", ["union", "promax", "tile"]),
        ("sd3", "controlnet", ["canny", "depth", "openpose", "tile"]),
        ("flux", "controlnet", ["canny", "depth", "hed", "union"]),
    ],
)
def test_every_entry_of_the_older_notebooks_lists_is_there_and_the_newer_families_too(family, kind, wanted):
    assert {one.purpose for one in controls_for(family, kind)} >= set(wanted)


def test_every_control_has_a_source_a_licence_and_a_family():
    for one in known_controls():
        assert one.family in FAMILY_NAMES and one.licence and one.mirrors, one.name
        assert all(source.file.endswith(".safetensors") for source in map(hub_source, one.mirrors) if source)


def test_preprocessors_are_those_that_the_page_and_the_api_know():
    """Each is either made here or a network whose way out is told."""
    from fastsd_lib.generation.control_modules import MODULES, UNKNOWN_NETWORKS

    known = {name for module in MODULES.values() for name in (module.name, *module.aliases)}
    for one in known_controls():
        assert one.preprocessor in known or any(word in one.preprocessor for word in UNKNOWN_NETWORKS), (
            one.preprocessor
        )


@pytest.mark.parametrize(
    ("purpose", "family", "name"),
    [
        ("canny", "sd1", "control_v11p_sd15_canny_fp16"),
        ("Canny", "sd2", "control_v11p_sd21_canny"),
        ("canny", "sdxl", "xinsir-canny-sdxl"),
        ("canny", "sd3", "instantx-canny-sd3"),
        ("canny", "flux", "flux-canny-controlnet-v3"),
        ("recolor", "sdxl", "sai_xl_recolor_256lora"),
        ("openpose", "flux", "flux-union-pro-2"),  # no network of its own: one that can do it
        ("color", "sd1", "t2iadapter_color-fp16"),
        ("control_v11p_sd15_canny_fp16.safetensors", "sd1", "control_v11p_sd15_canny_fp16"),
    ],
)
def test_the_base_model_decides_which_network_a_purpose_means(purpose, family, name):
    assert pick_control(purpose, family).name == name


@pytest.mark.parametrize(
    ("purpose", "family", "said", "way_out"),
    [
        ("cany", "sd1", "There is no ControlNet 'cany' (did you mean canny?).", "some of canny, depth"),
        ("seg", "sdxl", "", ""),
        (
            "ip2p",
            "sdxl",
            "There is no ControlNet ip2p for SDXL, only for SD 1.x.",
            "some of canny, depth, sketch",
        ),
        (
            "control_v11p_sd15_canny_fp16",
            "sdxl",
            "is for SD 1.x, and the model is SDXL.",
            "take xinsir-canny-sdxl.",
        ),
        ("canny", "sdxl_refiner", "for SDXL refiner, only for", "draw without one"),
        ("\x1b[31m", "sd1", r"There is no ControlNet '\x1b[31m'", "some of canny"),
    ],
)
def test_what_does_not_fit_is_told_with_what_does(purpose, family, said, way_out):
    if not said:
        assert pick_control(purpose, family).name == "xinsir-union-sdxl"
        return
    with pytest.raises(UserError) as error:
        pick_control(purpose, family)
    assert said in error.value.message and way_out in error.value.fix, str(error.value)


@pytest.mark.parametrize(
    ("purpose", "variant", "name"),
    [
        ("canny", "3 medium", "instantx-canny-sd3"),
        ("canny", "3.5 large", "sd3.5-large-canny"),
        ("canny", "3.5 large turbo", "sd3.5-large-canny"),
        ("tile", "3.5 large", "sd3.5-large-blur"),
        ("sd3.5-large-depth", "3.5 large", "sd3.5-large-depth"),
        ("sd3.5-large-depth", "", "sd3.5-large-depth"),
    ],
)
def test_of_sd3_the_variant_decides_too(purpose, variant, name):
    assert pick_control(purpose, "sd3", variant).name == name


@pytest.mark.parametrize(
    ("purpose", "variant", "said", "way_out"),
    [
        ("openpose", "3.5 large", "no ControlNet openpose for SD 3.5 large, only for", "some of canny, depth, tile;"),
        ("instantx-canny-sd3", "3.5 large", "is for SD 3 medium, and the model is SD 3.5 large.",
         "take sd3.5-large-canny."),
        ("canny", "3.5 medium", "for SD 3.5 medium, only for", "draw without one"),
    ],
)  # fmt: skip
def test_a_network_for_another_sd3_is_refused(purpose, variant, said, way_out):
    with pytest.raises(UserError) as error:
        pick_control(purpose, "sd3", variant)
    assert said in error.value.message and way_out in error.value.fix, str(error.value)


def test_every_network_for_sd3_says_for_which_and_all_takes_those_of_one():
    assert {one.variant for one in known_controls() if one.family == "sd3"} == {"3 medium", "3.5 large"}
    assert not [one.name for one in known_controls() if one.variant and one.family != "sd3"]
    assert [one.name for one in controls.usual_controls("sd3", "3.5 large")] == [
        "sd3.5-large-canny", "sd3.5-large-depth", "sd3.5-large-blur",
    ]  # fmt: skip
    assert controls.usual_controls("sdxl", "inpainting") == controls.usual_controls("sdxl")


def test_all_is_one_network_for_each_purpose_of_the_older_lists():
    assert [one.purpose for one in controls.usual_controls("sd1")] == V1
    assert {one.purpose for one in controls.usual_controls("sdxl")} >= set(XL)
    assert not [one.name for one in controls.usual_controls("sdxl") if "union" in one.name]
    assert len(controls.adapters_for("sd1")) == 8
    with pytest.raises(UserError, match="no ControlNet 't2i'"):
        controls.adapters_for("flux")


def test_sizes_are_told_before_a_download_and_unknown_ones_as_unknown():
    known = KnownControl("a", "canny", "sd1", ("hf:a/b/a.safetensors",), size_bytes=723_000_000)
    dark = KnownControl("b", "depth", "sd1", ("hf:a/b/b.safetensors",))
    assert controls.total_size([known, known]) == "2 files, 1.4 GB"
    assert controls.total_size([known, dark]) == "2 files, 0.7 GB and 1 of unknown size"
    assert controls.total_size([dark]) == "1 file of unknown size"
    assert [controls.shown_size(size) for size in (0, 723_000_000, 2_513_342_408)] == [
        "size unknown",
        "723 MB",
        "2.5 GB",
    ]
    assert controls.total_size(controls.usual_controls("sd1")) == "14 files, 10.1 GB"
