"""X/Y/Z plots: what an axis may be, the cells it makes, the order they are drawn in, the grid and its text."""

from __future__ import annotations

import json
import shutil
import threading
import time

import numpy as np
import pytest
from api_server import SMALL, encoded, picture, served_api
from PIL import Image

from fastsd_lib.generation.infotext import read_infotext
from fastsd_lib.generation.library import LibraryFolders
from fastsd_lib.generation.resources import Library
from fastsd_lib.generation.service import Service
from fastsd_lib.generation.shelf import Shelf
from fastsd_lib.generation.styles import Style, write_styles
from fastsd_lib.models import registry
from fastsd_lib.webui.a1111 import translate
from fastsd_lib.webui.a1111_models import Img2ImgBody, Txt2ImgBody
from fastsd_lib.webui.a1111_xyz_axes import axes_of
from fastsd_lib.webui.a1111_xyz_values import BadValue, joined_list, split_list, values_of
from fastsd_lib.webui.api_errors import Refused
from fastsd_lib.webui.context import ApiContext
from fastsd_lib.webui.grids import EMPTY
from fastsd_lib.webui.options import Options

PLOT = "X/Y/Z plot"


def args(x=(0, ""), y=(0, ""), z=(0, ""), legend=True, pictures=False, sheets=False, **more) -> list:
    """As A1111's page sends them; an axis is (type, text) or (type, text, list)."""
    axes = [part for axis in (x, y, z) for part in (*axis, [])[:3]]
    vary = [more.get(f"vary_{letter}", False) for letter in "xyz"]
    last = [more.get("margin", 0), more.get("as_text", False)]
    return [*axes, legend, pictures, sheets, more.get("keep_random", False), *vary, *last]


# ------------------------------------------------------------------ values


@pytest.mark.parametrize(
    ("text", "kind", "values"),
    [
        ("1,2, 3", "whole", [1, 2, 3]),
        ("1-5", "whole", [1, 2, 3, 4, 5]),
        ("1-10 (+3)", "whole", [1, 4, 7, 10]),
        ("1-10 (+2)", "whole", [1, 3, 5, 7, 9]),
        ("10-5 (-3)", "whole", [10, 7]),
        ("3-1", "whole", [3, 2, 1]),
        ("1-10 [5]", "whole", [1, 3, 5, 7, 10]),
        ("-2-2 (+2), 7", "whole", [-2, 0, 2, 7]),
        ("0-1 (+0.25)", "number", [0, 0.25, 0.5, 0.75, 1]),
        ("0-1[3]", "number", [0, 0.5, 1]),
        ("0.1-0.3 (+0.1)", "number", [0.1, 0.2, 0.3]),
        ("1e-3, .5", "number", [0.001, 0.5]),
        ("1,,2,", "whole", [1, 2]),
        ('"a, b", c\nd', "text", ["a, b", "c", "d"]),
        ('"say ""hi""", ', "text", ['say "hi"', ""]),
        ("a, b", "order", [("a", "b"), ("b", "a")]),
    ],
)
def test_lists_ranges_and_counts_are_read_as_a1111_writes_them(text, kind, values):
    assert values_of(split_list(text), kind) == values


@pytest.mark.parametrize(
    ("text", "kind", "named"),
    [
        ("1,two", "whole", "two"),
        ("1.5", "whole", "1.5"),
        ("1-999999999", "whole", "more than 1000 values"),
        ("1-5 (-1)", "whole", "1-5 (-1)"),
        ("1-5 (+0)", "whole", "1-5 (+0)"),
        ("0-1 [0]", "number", "0-1 [0]"),
        ("nan", "number", "nan"),
        ("inf", "number", "inf"),
        ("9" * 400, "whole", "9" * 400),
        ('"open', "text", '"open'),
        ("a,b,c,d,e,f,g", "order", "7 words"),
        (",".join("a" * 1001), "text", "more than 1000 values"),
    ],
)
def test_what_is_no_value_is_named(text, kind, named):
    with pytest.raises(BadValue) as error:
        values_of(split_list(text), kind)
    assert error.value.args[0] == named and error.value.args[1]


def test_a_joined_list_is_taken_apart_into_the_same_parts():
    parts = ["a, b", 'c "d"', "e\nf", "", "g"]
    assert split_list(joined_list(parts)) == parts


def test_axes_have_a1111s_numbers():
    """Programs send numbers: those of A1111 1.10's menus."""
    there = [axis.label for axis in axes_of("txt2img")]
    over = [axis.label for axis in axes_of("img2img")]
    assert [there.index(name) for name in ("Nothing", "Seed", "Steps", "CFG Scale", "Sampler")] == [
        0,
        1,
        4,
        6,
        9,
    ]
    assert [there.index(name) for name in ("Checkpoint name", "Denoising", "Hires upscaler")] == [11, 25, 28]
    assert [over.index(name) for name in ("CFG Scale", "Image CFG Scale", "Sampler", "Denoising")] == [
        5,
        6,
        9,
        24,
    ]


# ------------------------------------------------------------------ cells


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An A1111 folder with a second model in it."""
    folder = tmp_path_factory.mktemp("a1111")
    write_styles(
        folder / "styles.csv", [Style("oil", "{prompt}, oil painting"), Style("ink", "{prompt}, ink")]
    )
    from fastsd_lib.formats.single_file import export_single_file

    export_single_file(
        registry.base_model(registry.EMBEDDED), folder / "models" / "Stable-diffusion" / "second.safetensors"
    )
    return folder


@pytest.fixture(scope="module")
def context(folder):
    service = Service(Shelf(Library.of(LibraryFolders.under(folder))))
    yield ApiContext(service, Options())
    service.close()


@pytest.fixture
def plot(context):
    def ask(*axes, body=None, **more):
        named = dict(zip("xyz", axes, strict=False))
        fields = {"prompt": "a red star", "seed": 5, "width": 64, "height": 64, "steps": 2} | (body or {})
        fields |= {"script_name": PLOT, "script_args": args(**named, **more)}
        return translate(Txt2ImgBody.model_validate(fields), context)

    return ask


def test_every_combination_is_drawn_once_column_by_row_by_sheet(plot):
    ordered = plot(("Steps", "1,2"), ("CFG Scale", "3-5"), ("Seed", "7,9"))
    asked = [(o.request.inference_steps, o.request.guidance_scale, o.request.seed) for o in ordered.orders]
    assert asked == [(x, y, z) for z in (7, 9) for y in (3.0, 4.0, 5.0) for x in (1, 2)]
    assert ordered.cells == tuple(range(12))
    assert ordered.plot.columns == ("Steps: 1", "Steps: 2") and ordered.plot.sheets == ("Seed: 7", "Seed: 9")


@pytest.mark.parametrize(
    ("axis", "text", "read"),
    [
        ("Seed", "1,2", lambda r: r.seed),
        ("Sigma Churn", "1,2", lambda r: int(r.s_churn)),
        ("Sigma noise", "1,2", lambda r: int(r.s_noise)),
        ("Clip skip", "1,2", lambda r: r.clip_skip),
        ("Eta", "0,2", lambda r: {0.0: 1, 2.0: 2}[r.eta]),
        ("Size", "64x72, 128 x 72", lambda r: r.width_px // 64),
        ("Styles", "oil,ink", lambda r: 1 + ("ink" in r.prompt)),
        ("Prompt S/R", "red,blue", lambda r: 1 + ("blue" in r.prompt)),
        ("Prompt order", "red,star", lambda r: 1 + (r.prompt == "a star red")),
        ("Schedule type", "Karras,simple", lambda r: {"karras": 1, "simple": 2}[r.schedule]),
        ("Sampler", '"Euler a", k_heun', lambda r: {"Euler a": 1, "k_heun": 2}[r.sampler]),
    ],
)
def test_an_axis_varies_its_field(plot, axis, text, read):
    body = {"sampler_name": "Euler a"}
    assert [read(order.request) for order in plot((axis, text), body=body).orders] == [1, 2]


def test_a_variations_axes(plot):
    orders = plot(("Var. seed", "7,8"), ("Var. strength", "0.25-0.75 [2]")).orders
    assert [(o.request.variation_seed, o.request.variation_strength) for o in orders] == [
        (7, 0.25), (8, 0.25), (7, 0.75), (8, 0.75),
    ]  # fmt: skip


def test_the_second_passs_axes_need_a_second_pass(plot):
    body = {"enable_hr": True, "sampler_name": "Euler a"}
    ordered = plot(
        ("Hires steps", "1,2"), ("Denoising", "0.5"), ("Hires upscaler", "Latent, Lanczos"), body=body
    )
    second = [order.request.hires for order in ordered.orders]
    assert [one.inference_steps for one in second[:2]] == [1, 2] and second[0].strength == 0.5
    assert [second[0].upscaler, second[2].upscaler] == ["latent", "lanczos"]
    with pytest.raises(Refused, match="X axis is 'Hires steps', but there is no second pass"):
        plot(("Hires steps", "1,2"))


def test_values_come_from_the_menu_unless_text_is_wanted(plot):
    listed = plot(("Sampler", "ignored", ["DDIM", "Heun"]))
    assert [order.request.sampler for order in listed.orders] == ["DDIM", "Heun"]
    assert listed.plot.facts["X Values"] == "DDIM,Heun"
    text = plot(("Sampler", "Euler", ["DDIM", "Heun"]), as_text=True)
    assert [order.request.sampler for order in text.orders] == ["Euler"]
    assert [order.request.sampler for order in plot(("Sampler", "Euler", [])).orders] == ["Euler"]


def test_an_axis_by_its_number_in_each_tab(plot, context):
    assert [order.request.sampler for order in plot((9, "Euler")).orders] == ["Euler"]
    fields = {
        "init_images": [encoded(Image.new("RGB", (64, 64)))],
        "script_name": PLOT,
        "script_args": args((24, "0-1 [3]")),
    }
    over = translate(Img2ImgBody.model_validate(fields), context)
    assert [order.request.strength for order in over.orders] == [0, 0.5, 1]


def test_seeds_are_fixed_once_for_all_cells_unless_they_shall_not(plot):
    random_seed = {"seed": -1}
    fixed = plot(("Steps", "1-6"), body=random_seed)
    assert len({order.request.seed for order in fixed.orders}) == 1
    loose = plot(("Steps", "1-6"), body=random_seed, keep_random=True)
    assert len({order.request.seed for order in loose.orders}) == 6
    axis = plot(("Seed", "-1,-1,4"), ("Steps", "1,2"))
    seeds = [order.request.seed for order in axis.orders]
    assert seeds[:3] == seeds[3:] and seeds[2] == 4 and len(set(seeds)) == 3
    assert axis.plot.facts["Fixed X Values"] == ", ".join(map(str, seeds[:3]))


def test_seeds_that_vary_count_the_cells_along_their_axes(plot):
    asked = [("Steps", "1,2"), ("CFG Scale", "1,2,3"), ("Clip skip", "1,2")]
    every = plot(*asked, vary_x=True, vary_y=True, vary_z=True)
    assert sorted(o.request.seed for o in every.orders) == list(range(5, 17))
    rows = plot(*asked, vary_y=True)
    assert [order.request.seed for order in rows.orders] == [5, 5, 6, 6, 7, 7] * 2


def test_models_are_switched_as_seldom_as_can_be_but_the_grid_has_the_users_order(plot):
    ordered = plot(("Checkpoint name", "second, embedded"), ("Steps", "1,2,3"))
    assert [order.model for order in ordered.orders] == ["second"] * 3 + ["embedded"] * 3
    assert ordered.cells == (0, 2, 4, 1, 3, 5)
    sizes = plot(("Size", "64x64,128x64"), ("Steps", "1,2"))
    assert sizes.cells == (0, 2, 1, 3)


def test_controlnets_axes_change_the_first_unit_that_is_on(plot):
    star = encoded(Image.new("RGB", (64, 64), "white"))
    units = {"controlnet": {"args": [{"enabled": False}, {"module": "canny", "image": star}]}}
    orders = plot(("[ControlNet] Weight", "0.5,1.5"), body={"alwayson_scripts": units}).orders
    assert [order.request.control[0].weight for order in orders] == [0.5, 1.5]
    assert orders[0].request.control[0].image is orders[1].request.control[0].image
    with pytest.raises(Refused, match="switch a ControlNet unit on"):
        plot(("[ControlNet] Weight", "0.5"))


@pytest.mark.parametrize(
    ("axes", "status", "said"),
    [
        ([("Steps", "1,two")], 422, ["X axis 'Steps'", "'two'", "whole numbers"]),
        ([("Steps", "0")], 422, ["X axis", "Steps: 0", "greater than or equal to 1"]),
        ([(0, ""), ("CFG Scale", "101")], 422, ["Y axis", "CFG Scale: 101"]),
        ([("Steps", "")], 422, ["X axis is 'Steps'", "no values"]),
        ([("Stepps", "1")], 422, ["no axis 'Stepps'", "Steps"]),
        ([(99, "1")], 422, ["no axis '99'"]),
        ([(-1, "1")], 422, ["no axis '-1'"]),
        ([({"a": 1}, "1")], 422, ["no axis"]),
        ([("Sampler", "Euler b")], 404, ["X Sampler 'Euler b'", "Euler a"]),
        ([("Checkpoint name", "secnd")], 404, ["Checkpoint name 'secnd'", "second"]),
        ([("VAE", "nowhere")], 404, ["VAE 'nowhere'"]),
        ([("Styles", "oill")], 422, ["'Styles'", "'oill'", "oil"]),
        ([("Schedule type", "karas")], 404, ["Schedule type 'karas'", "Karras"]),
        ([("Clip skip", "99")], 422, ["Clip skip '99'", "1 to 12"]),
        ([("Size", "64")], 422, ["'Size'", "'64'", "512x768"]),
        ([("Size", "99999x64")], 422, ["Size: 99999x64"]),
        ([("Prompt S/R", "green,blue")], 422, ["'Prompt S/R'", "'green'", "prompt"]),
        ([("Prompt order", "red,blue")], 422, ["'Prompt order'", "'blue'"]),
        ([("Initial noise multiplier", "1")], 422, ["'Initial noise multiplier'", "cannot be varied here"]),
        ([("Steps", "1"), ("Steps", "2")], 422, ["X and the Y axis are both 'Steps'"]),
        ([("Seed", "1-100"), ("Steps", "1-100")], 422, ["100 x 100 x 1", "10000 pictures", "1000"]),
        ([("Size", "4096x4096"), ("Steps", "1-9")], 422, ["million pixels", "most is 100 million"]),
    ],
)  # fmt: skip
def test_what_cannot_be_plotted_is_said_with_axis_and_value(plot, axes, status, said):
    with pytest.raises(Refused) as error:
        plot(*axes)
    assert error.value.status == status
    line = str(error.value)
    assert "\n" not in error.value.message and all(part in line for part in said), line


@pytest.mark.parametrize(
    ("given", "said"),
    [([[], 3, {}], "no axis"), (["Steps", {"a": 1}], "'Steps'"), (args(("Steps", "1"), margin=-2), "margin is '-2'"),
     (args(("Steps", "1"), margin="wide"), "margin is 'wide'")],
)  # fmt: skip
def test_arguments_of_any_kind_are_refused_by_name(context, given, said):
    body = Txt2ImgBody(prompt="a", width=64, height=64, script_name=PLOT, script_args=given)
    with pytest.raises(Refused, match=said):
        translate(body, context)


def test_a_webp_grid_that_webp_cannot_store_is_refused_before_it_is_drawn(plot):
    body = {"width": 2048, "override_settings": {"samples_format": "webp"}}
    with pytest.raises(Refused, match="which webp cannot store"):
        plot(("Seed", "1-9"), body=body)


def test_arguments_of_older_versions_have_no_seeds_that_vary(context):
    given = ["Steps", "1,2", [], 0, "", [], 0, "", [], True, True, False, False, 30, False]
    body = Txt2ImgBody(prompt="a", width=64, height=64, script_name=PLOT, script_args=given)
    assert translate(body, context).plot.margin_px == 30


# ------------------------------------------------------------------ over HTTP


@pytest.fixture(scope="module")
def api(folder, tmp_path_factory):
    own = tmp_path_factory.mktemp("served")
    shutil.copytree(folder, own, dirs_exist_ok=True)
    with served_api(own) as served:
        yield served


def drawn(api, *axes, **more):
    fields = {name: more.pop(name) for name in list(more) if name in Txt2ImgBody.model_fields}
    named = dict(zip("xyz", axes, strict=False))
    answer = api.draw(
        **{"seed": 5, "script_name": PLOT.lower(), "script_args": args(**named, **more)} | fields
    )
    return [picture(one) for one in answer["images"]], json.loads(answer["info"])


def test_the_grid_shows_each_cells_picture_where_the_user_put_it(api):
    images, info = drawn(
        api, ("Checkpoint name", "second,embedded"), ("Seed", "5,6"), legend=False, pictures=True
    )
    assert len(images) == 5 and info["index_of_first_image"] == 1 and len(info["infotexts"]) == 5
    grid = np.asarray(images[0])
    assert grid.shape == (128, 128, 3)
    for cell, one in enumerate(images[1:]):
        row, column = divmod(cell, 2)
        place = grid[64 * row : 64 * row + 64, 64 * column : 64 * column + 64]
        assert np.array_equal(place, np.asarray(one))
        read = read_infotext(one.info["parameters"])
        assert (read["Model"], read["Seed"]) == (("second", "embedded")[column], str(5 + row))
    alone = api.draw(seed=6)["images"][0]
    difference = np.asarray(images[4], int) - np.asarray(picture(alone), int)
    assert np.abs(difference).max() <= 2
    assert info["all_seeds"] == [5, 5, 6, 6]


def test_a_grid_alone_with_its_legend_and_what_it_was_made_of(api):
    images, info = drawn(
        api, ("Steps", "1,2"), ("Prompt S/R", '"red star","blue, dark star"'), ("Seed", "7,-1")
    )
    assert len(images) == 1 and len(info["infotexts"]) == 1
    assert images[0].width > 4 * 64 and images[0].height > 2 * 64
    read = read_infotext(images[0].info["parameters"])
    assert read["Script"] == PLOT and read["X Type"] == "Steps" and read["X Values"] == "1,2"
    assert read["Y Values"] == 'red star,"blue, dark star"' and read["Z Type"] == "Seed"
    assert read["Fixed Z Values"].startswith("7, ") and "-1" not in read["Fixed Z Values"]


def test_sheets_are_sent_besides_and_say_nothing_of_each_other(api):
    images, info = drawn(api, ("Steps", "1,2"), (0, ""), ("Seed", "7,9"), sheets=True, margin=6)
    assert len(images) == 3 and info["index_of_first_image"] == 3
    whole, first, second = images
    assert first.size == second.size and whole.width >= 2 * first.width + 6
    texts = [read_infotext(one.info["parameters"]) for one in images]
    assert "Z Type" in texts[0] and "Z Type" not in texts[1]
    assert (texts[1]["Seed"], texts[2]["Seed"]) == ("7", "9")


def test_pictures_of_several_sizes_stand_in_the_middle_of_their_cells(api):
    images, _ = drawn(api, ("Size", "64x64,96x64"), legend=False, pictures=True)
    assert images[0].size == (192, 64)
    assert np.array_equal(np.asarray(images[0])[:, 16:80], np.asarray(images[1]))


def test_several_pictures_of_a_cell_stand_in_it_together(api):
    images, info = drawn(api, ("Steps", "1,2"), legend=False, pictures=True, batch_size=2)
    assert images[0].size == (256, 64) and len(images) == 5
    assert info["all_seeds"] == [5, 6, 5, 6]


def test_what_is_interrupted_shows_the_cells_that_there_are(api):
    found = {}

    def ask():
        found["answer"] = drawn(api, ("Seed", "1-40"), legend=False, steps=100)

    thread = threading.Thread(target=ask)
    thread.start()
    while not any(job.step > 3 for job in api.service.running()) and thread.is_alive():
        time.sleep(0.01)
    api.post("/sdapi/v1/interrupt")
    thread.join(60)
    (grid,), info = found["answer"]
    assert grid.size == (40 * 64, 64) and info["infotexts"]
    cells = np.asarray(grid).reshape(64, 40, 64, 3)
    empty = [bool((cells[:, column] == EMPTY).all()) for column in range(40)]
    assert not empty[0] and empty[-1]


def test_a_cell_that_cannot_be_drawn_is_empty_and_named(api):
    broken = api.folder / "models" / "Stable-diffusion" / "broken.safetensors"
    source = (api.folder / "models" / "Stable-diffusion" / "second.safetensors").read_bytes()
    broken.write_bytes(
        source.replace(b"model.diffusion_model.out.2.bias", b"model.diffusion_model.out.9.bias")
    )
    try:
        images, info = drawn(api, ("Checkpoint name", "broken,embedded"), legend=False)
        assert images[0].size == (128, 64)
        assert any(one.startswith("broken: ") for one in info["warnings"]), info["warnings"]
        body = SMALL | {"script_name": PLOT, "script_args": args(("Checkpoint name", "broken"))}
        assert api.post("/sdapi/v1/txt2img", body).status_code == 422
    finally:
        broken.unlink()


def test_grids_are_saved_with_the_pictures(api):
    drawn(api, ("Steps", "1,2"), save_images=True)
    saved = sorted(path.parent.parent.name for path in (api.folder / "outputs").rglob("*.png"))
    assert saved == ["txt2img-grids", "txt2img-images", "txt2img-images"]


def test_programs_find_the_script_and_its_arguments(api):
    assert "x/y/z plot" in api.get("/sdapi/v1/scripts").json()["txt2img"]
    rows = api.get("/sdapi/v1/script-info").json()
    txt2img, img2img = (row for row in rows if row["name"] == "x/y/z plot")
    assert (len(txt2img["args"]), img2img["is_img2img"]) == (18, True)
    assert "Sampler" in txt2img["args"][0]["choices"] and txt2img["args"][9]["value"] is True
