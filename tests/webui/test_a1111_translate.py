"""A1111's words become ours: field by field, without a server."""

from __future__ import annotations

import json

import pytest
from api_server import encoded
from PIL import Image

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.library import LibraryFolders
from fastsd_lib.generation.resources import Library
from fastsd_lib.generation.service import Service
from fastsd_lib.generation.shelf import Shelf
from fastsd_lib.generation.styles import Style, write_styles
from fastsd_lib.webui.a1111 import translate
from fastsd_lib.webui.a1111_models import Img2ImgBody, Txt2ImgBody
from fastsd_lib.webui.api_errors import Refused
from fastsd_lib.webui.context import ApiContext, ApiLimits
from fastsd_lib.webui.options import Options

PICTURE = encoded(Image.new("RGB", (80, 48), "red"))
MASK = encoded(Image.new("L", (80, 48), 255))


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a1111")
    write_styles(folder / "styles.csv", [Style("oil", "{prompt}, oil painting", "photo")])
    service = Service(Shelf(Library.of(LibraryFolders.under(folder))))
    yield ApiContext(service, Options())
    service.close()


@pytest.fixture
def text(context):
    return lambda **fields: translate(Txt2ImgBody.model_validate(fields), context)


@pytest.fixture
def over(context):
    given = {"init_images": [PICTURE]}
    return lambda **fields: translate(Img2ImgBody.model_validate(given | fields), context)


def test_an_empty_request_has_a1111s_defaults(text):
    asked = text().first
    expected = ("", "", 50, 7.0, 1, 512, 512, "Euler", "automatic", 1, False)
    assert (
        asked.prompt, asked.negative_prompt, asked.inference_steps, asked.guidance_scale, asked.count,
        asked.width_px, asked.height_px, asked.sampler, asked.schedule, asked.clip_skip, asked.tiling,
    ) == expected  # fmt: skip
    assert asked.hires is None and asked.init is None and asked.control == () and asked.eta is None
    assert asked.s_tmax is None and asked.s_noise == 1.0 and asked.seed_from_width_px is None


@pytest.mark.parametrize(
    ("sent", "ours"),
    [
        ({"prompt": "a", "negative_prompt": "b"}, {"prompt": "a", "negative_prompt": "b"}),
        ({"seed": 7}, {"seed": 7}),
        ({"seed": "7"}, {"seed": 7}),
        ({"steps": 8, "cfg_scale": 4}, {"inference_steps": 8, "guidance_scale": 4.0}),
        ({"batch_size": 3, "n_iter": 2}, {"count": 6}),
        ({"width": 640, "height": 320}, {"width_px": 640, "height_px": 320}),
        ({"subseed": 9, "subseed_strength": 0.3}, {"variation_seed": 9, "variation_strength": 0.3}),
        ({"seed_resize_from_w": 64, "seed_resize_from_h": 32}, {"seed_from_width_px": 64, "seed_from_height_px": 32}),
        ({"seed_resize_from_w": 0, "seed_resize_from_h": -1}, {"seed_from_width_px": None, "seed_from_height_px": None}),
        ({"sampler_index": "DDIM"}, {"sampler": "DDIM"}),
        ({"sampler_index": "DDIM", "sampler_name": "Heun"}, {"sampler": "Heun"}),
        ({"sampler_index": 0, "sampler_name": "Heun"}, {"sampler": "Heun"}),
        ({"alwayson_scripts": {"ControlNet": {"args": None}, "controlnet": None}}, {"control": ()}),
        ({"scheduler": "automatic"}, {"schedule": "automatic"}),
        ({"scheduler": "KARRAS"}, {"schedule": "karras"}),
        ({"scheduler": "Align Your Steps"}, {"schedule": "align_your_steps"}),
        ({"tiling": True}, {"tiling": True}),
        ({"eta": 0.5, "sampler_name": "Euler a"}, {"eta": 0.5}),
        ({"eta": 1.0, "sampler_name": "Euler a"}, {"eta": None}),  # its own
        ({"eta": 1.0, "sampler_name": "Euler"}, {"eta": None}),  # it has none; webuiapi sends it with all
        ({"eta": 1.0, "sampler_name": "DDIM"}, {"eta": 1.0}),
        ({"s_churn": 2, "s_tmin": 0.1, "s_tmax": 5, "s_noise": 1.1},
         {"s_churn": 2.0, "s_tmin": 0.1, "s_tmax": 5.0, "s_noise": 1.1}),
        ({"disable_extra_networks": True}, {"networks_off": True}),
        ({"override_settings": {"CLIP_stop_at_last_layers": 2}}, {"clip_skip": 2}),
        ({"override_settings": {"eta_ancestral": 0.4}, "sampler_name": "Euler a"}, {"eta": 0.4}),
        ({"override_settings": {"eta_ddim": 0.4}, "sampler_name": "DDIM"}, {"eta": 0.4}),
        ({"override_settings": {"tiling": True}}, {"tiling": True}),
        ({"styles": ["oil"], "prompt": "a cat"}, {"prompt": "a cat, oil painting", "negative_prompt": "photo"}),
        ({"prompt": None, "steps": None, "styles": None, "seed": 1}, {"prompt": "", "inference_steps": 50}),
        ({"who_knows": 1, "alwayson_scripts": {}, "comments": {}}, {"prompt": ""}),
    ],
)  # fmt: skip
def test_each_field_of_text_to_image_means_what_it_means_there(text, sent, ours):
    asked = text(**sent).first
    assert {name: getattr(asked, name) for name in ours} == ours


@pytest.mark.parametrize(
    ("sent", "sampler"),
    [
        ("k_euler_a", ("euler_a", "uniform")),
        ("EULER A", ("euler_a", "uniform")),
        ("DPM++ 2M Karras", ("dpmpp_2m", "karras")),
        ("dpm++ 2m karras", ("dpmpp_2m", "karras")),
        ("DPM++ SDE Exponential", ("dpmpp_sde", "exponential")),
    ],
)
def test_samplers_are_known_by_every_name(text, sent, sampler):
    from fastsd_lib.generation.samplers import choose

    asked = text(sampler_name=sent, scheduler="automatic").first
    assert choose(asked.sampler, asked.schedule) == sampler


def test_a_seed_of_minus_one_is_random_and_leaves_room_for_the_last_picture(text):
    seeds = {text(seed=-1, batch_size=1000).first.seed for _ in range(20)}
    assert len(seeds) > 15 and all(0 <= seed <= 2**32 - 1 - 999 for seed in seeds)


def test_a_size_that_no_model_draws_is_rounded_down_as_there_and_said(text):
    ordered = text(width=515, height=513)
    assert (ordered.first.width_px, ordered.first.height_px) == (512, 512)
    assert ordered.warnings == [
        "width is 515, drawn at 512: a multiple of 8",
        "height is 513, drawn at 512: a multiple of 8",
    ]


def test_hires_fix_becomes_a_second_pass(text):
    hires = text(
        enable_hr=True, hr_scale=1.5, hr_upscaler="Latent (bicubic antialiased)", denoising_strength=0.4,
        hr_second_pass_steps=9, hr_sampler_name="DDIM", hr_scheduler="Karras", hr_prompt="more", hr_cfg=3,
    ).first.hires  # fmt: skip
    assert (hires.scale, hires.upscaler, hires.strength) == (1.5, "latent_bicubic_antialiased", 0.4)
    assert (hires.inference_steps, hires.sampler, hires.schedule) == (9, "DDIM", "karras")
    assert (hires.prompt, hires.negative_prompt, hires.guidance_scale) == ("more", "", 3.0)


def test_hires_fields_are_ignored_while_it_is_off(text):
    assert text(hr_scale=0, hr_upscaler="no such", firstphase_width=64, hr_resize_x=-1).first.hires is None


@pytest.mark.parametrize(
    ("sent", "first", "second"),
    [
        ({"hr_resize_x": 1024, "hr_resize_y": 768}, (512, 512), (1024, 768)),
        ({"hr_resize_x": 1024}, (512, 512), (1024, None)),
        ({"firstphase_width": 256, "firstphase_height": 128}, (256, 128), (512, 512)),
    ],
)
def test_the_second_passes_size_by_each_way_of_asking(text, sent, first, second):
    asked = text(enable_hr=True, **sent).first
    assert (asked.width_px, asked.height_px) == first
    assert (asked.hires.width_px, asked.hires.height_px) == second


def test_firstpass_image_begins_at_the_second_pass(text):
    asked = text(
        enable_hr=True, firstpass_image=PICTURE, hr_scale=2, width=64, height=64, denoising_strength=0.3
    ).first
    assert asked.hires is None and asked.init.size == (80, 48)
    assert (asked.width_px, asked.height_px, asked.strength, asked.resize_mode) == (128, 128, 0.3, "latent")


@pytest.mark.parametrize(("sent", "mode"), [(0, "stretch"), (1, "crop"), (2, "fill"), (3, "latent")])
def test_resize_modes(over, sent, mode):
    assert over(resize_mode=sent).first.resize_mode == mode


def test_image_to_image_has_a1111s_defaults(over):
    asked = over().first
    assert (asked.strength, asked.resize_mode, asked.inpaint) == (0.75, "stretch", None)
    assert asked.init.size == (80, 48)
    inpaint = over(mask=MASK).first.inpaint
    assert (inpaint.fill, inpaint.only_masked, inpaint.padding_px) == ("fill", True, 0)
    assert (inpaint.blur_px, inpaint.invert) == (4, False)


def test_a_masks_fields(over):
    inpaint = over(
        mask="data:image/png;base64," + MASK, mask_blur=7, inpainting_fill=3, inpaint_full_res=False,
        inpaint_full_res_padding=5, inpainting_mask_invert=True,
    ).first.inpaint  # fmt: skip
    assert (inpaint.blur_px, inpaint.fill, inpaint.only_masked) == (7, "latent_nothing", False)
    assert (inpaint.padding_px, inpaint.invert) == (5, True)
    assert over(mask=MASK, mask_blur_x=2, mask_blur_y=2).first.inpaint.blur_px == 2


def test_several_first_pictures_are_each_drawn_over_with_seeds_counted_on(over):
    other = encoded(Image.new("RGB", (64, 64), "blue"))
    orders = over(init_images=[PICTURE, other], n_iter=2, seed=10).orders
    assert [(one.request.seed, one.request.count, one.request.init.size) for one in orders] == [
        (10, 1, (80, 48)),
        (11, 1, (64, 64)),
        (12, 1, (80, 48)),
        (13, 1, (64, 64)),
    ]


INFOTEXT = """a cat, oil painting
Negative prompt: dogs, photo
Steps: 9, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 4.5, Seed: 77, Size: 256x128, Clip skip: 2, \
Denoising strength: 0.35, Hires upscale: 1.5, Hires upscaler: Latent (nearest), Version: v1.10.1"""


def test_infotext_fills_what_the_request_leaves_open_and_nothing_else(text):
    asked = text(infotext=INFOTEXT, steps=4, cfg_scale=None).first
    assert (asked.prompt, asked.negative_prompt) == ("a cat, oil painting", "dogs, photo")
    assert (asked.inference_steps, asked.guidance_scale, asked.seed) == (4, 4.5, 77)
    assert (asked.sampler, asked.schedule, asked.clip_skip) == ("DPM++ 2M", "karras", 2)
    assert (asked.width_px, asked.height_px) == (256, 128)
    assert (asked.hires.scale, asked.hires.upscaler, asked.hires.strength) == (1.5, "latent_nearest", 0.35)


def test_infotext_of_an_unknown_model_draws_with_ours_and_says_so(text):
    ordered = text(infotext="a cat\nSteps: 9, Sampler: Euler, CFG scale: 7, Seed: 1, Model hash: 0123456789")
    assert ordered.orders[0].model == ""
    assert "0123456789" in ordered.warnings[0] and "The current model drew instead" in ordered.warnings[0]


def test_infotext_that_asks_for_what_is_not_here_says_so_and_draws(text):
    ordered = text(
        infotext="a cat\nSteps: 9, Sampler: Euler, CFG scale: 7, Seed: 1, ENSD: 31337, Clip skip: 2"
    )
    assert ordered.warnings == [
        "infotext: eta_noise_seed_delta is '31337': this server cannot do that. It was ignored."
    ]
    assert ordered.first.clip_skip == 2


def test_infotext_with_a_value_that_cannot_be_names_it(text):
    with pytest.raises(Refused, match=r"infotext: steps.*'many'"):
        text(infotext="a cat\nSteps: many, Sampler: Euler, CFG scale: 7, Seed: 1")


def test_unknown_styles_and_settings_are_ignored_as_there_but_said(text):
    ordered = text(styles=["oil", "nope", "None"], override_settings={"filter_nsfw": False})
    assert ordered.warnings == [
        "override_settings: there is no option 'filter_nsfw'; it was ignored",
        "there is no style 'nope'; it was left out",
    ]


def test_a_batch_is_told_to_the_service_as_a1111_counts_it(text):
    order = text(batch_size=3, n_iter=2, force_task_id="mine").orders[0]
    assert (order.at_once, order.task_id, order.kind) == (3, "mine", "txt2img")


# ------------------------------------------------------------------ scripts


def test_prompt_matrix_draws_every_choice_with_one_seed(text):
    ordered = text(script_name="Prompt Matrix", prompt="a | b | c", seed=5)
    assert [one.request.prompt for one in ordered.orders] == ["a", "a, b", "a, c", "a, b, c"]
    assert {one.request.seed for one in ordered.orders} == {5}
    assert ordered.grid_rows == 2


def test_prompt_matrix_at_the_start_with_own_seeds_and_spaces(text):
    orders = text(
        script_name="prompt matrix", prompt="a|b", seed=5, script_args=[True, True, "positive", "space"]
    ).orders
    assert [(one.request.prompt, one.request.seed) for one in orders] == [("a", 5), ("b a", 6)]


def test_prompts_from_a_list_with_options_in_the_lines(text):
    lines = 'a cat\n--prompt "a dog" --steps 7 --cfg_scale 3\n\n'
    orders = text(
        script_name="prompts from file or textbox", script_args=[True, False, "start", lines], seed=5, steps=3
    ).orders
    found = [
        (o.request.prompt, o.request.inference_steps, o.request.guidance_scale, o.request.seed)
        for o in orders
    ]
    assert found == [("a cat", 3, 7.0, 5), ("a dog", 7, 3.0, 6)]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([False, False, "start", "--outpath_samples /etc"], "may not say --outpath_samples"),
        ([False, False, "start", '--prompt "a'], "cannot be read"),
        ([False, False, "start", "--steps many"], "line 1: steps"),
        ([False, False, "start", ""], "0 lines"),
        ([False, False, "start", 7], "'7'"),
    ],
)
def test_lines_that_cannot_be_drawn_are_named(text, args, message):
    with pytest.raises(Refused, match=message):
        text(script_name="prompts from file or textbox", script_args=args)


# ------------------------------------------------------------------ ControlNet


def unit_of(text, **fields):
    scripts = {"ControlNet": {"args": [{"module": "canny", "image": PICTURE, **fields}]}}
    return text(alwayson_scripts=scripts).first.control[0]


def test_a_unit_has_the_extensions_defaults(text):
    unit = unit_of(text)
    assert (unit.preprocessor, unit.weight, unit.start, unit.end) == ("canny", 1.0, 0.0, 1.0)
    assert (unit.mode, unit.resize_mode, unit.hires_pass, unit.pixel_perfect) == (
        "balanced",
        "crop",
        "both",
        False,
    )
    assert (unit.resolution_px, unit.threshold_a, unit.threshold_b, unit.mask) == (None, None, None, None)
    assert unit.image.size == (80, 48)


@pytest.mark.parametrize(
    ("sent", "ours"),
    [
        ({"weight": 0.5, "guidance_start": 0.1, "guidance_end": 0.9}, {"weight": 0.5, "start": 0.1, "end": 0.9}),
        ({"guidance": 0.6}, {"end": 0.6}),
        ({"processor_res": 256, "threshold_a": 80, "threshold_b": 160},
         {"resolution_px": 256, "threshold_a": 80.0, "threshold_b": 160.0}),
        ({"control_mode": "My prompt is more important"}, {"mode": "prompt"}),
        ({"control_mode": 2}, {"mode": "control"}),
        ({"resize_mode": "Resize and Fill"}, {"resize_mode": "fill"}),
        ({"resize_mode": "Scale to Fit (Inner Fit)"}, {"resize_mode": "crop"}),
        ({"resize_mode": 0}, {"resize_mode": "stretch"}),
        ({"hr_option": "High res only"}, {"hires_pass": "hires"}),
        ({"pixel_perfect": True, "lowvram": True, "unknown": 1}, {"pixel_perfect": True}),
    ],
)  # fmt: skip
def test_each_field_of_a_unit(text, sent, ours):
    unit = unit_of(text, **sent)
    assert {name: getattr(unit, name) for name in ours} == ours


def test_a_units_picture_in_each_form_that_is_sent(text):
    other = encoded(Image.new("RGB", (32, 32), "blue"))
    assert unit_of(text, image={"image": other, "mask": MASK}).image.size == (32, 32)
    assert unit_of(text, image=[other]).image.size == (32, 32)
    assert unit_of(text, image=None, input_image=other).image.size == (32, 32)
    assert unit_of(text, image="").image is None
    assert unit_of(text, mask_image=MASK).mask.size == (80, 48)
    black = encoded(Image.new("L", (80, 48), 0))
    assert unit_of(text, mask=black).mask is None


def test_units_that_are_off_or_empty_are_no_units(text):
    scripts = {"controlnet": {"args": [{"enabled": False}, None, False]}}
    assert text(alwayson_scripts=scripts).first.control == ()
    assert text(alwayson_scripts={"ControlNet": {"args": []}}).first.control == ()


def test_a_unit_never_opens_a_file_of_the_server(text, tmp_path):
    place = tmp_path / "secret.png"
    Image.new("RGB", (64, 64)).save(place)
    with pytest.raises(Refused, match=r"is no base64|no picture"):
        unit_of(text, image=str(place))


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"module": "cany"}, "cany"),
        ({"control_mode": "strong"}, "'strong'"),
        ({"resize_mode": 7}, "'7'"),
        ({"weight": 5}, "weight.*5"),
        ({"weight": float("nan")}, "weight"),
        ({"guidance_start": 0.9, "guidance_end": 0.1}, "0.9 is after"),
        ({"ipadapter_input": ["x"]}, "ipadapter_input"),
        ({"advanced_weighting": [1.0]}, "advanced_weighting"),
        ({"processor_res": 1e9}, "processor_res"),
        ({"image": [PICTURE, PICTURE]}, "2 images"),
        ({"image": {"image": 7}}, "'7'"),
    ],
)
def test_a_unit_that_cannot_be_is_refused_by_its_field(text, sent, message):
    with pytest.raises(UserError, match=message):
        unit_of(text, **sent)


def test_units_are_refused_when_they_are_none(text):
    for args in ("canny", [7], [[]]):
        with pytest.raises(Refused, match=r"no list|no unit"):
            text(alwayson_scripts={"controlnet": {"args": args}})
    with pytest.raises(Refused, match="11 ControlNet units"):
        text(alwayson_scripts={"controlnet": {"args": [{}] * 11}})


def test_what_is_sent_as_json_may_be_null_everywhere(text):
    """A1111's models are all Optional: many programs write every field they know, most of them null."""
    fields = {name: None for name in Txt2ImgBody.model_fields}
    assert text(**json.loads(json.dumps(fields))).first.inference_steps == 50


def test_a_picture_is_decoded_once_for_all_lines_of_a_script(over):
    lines = {"script_name": "prompts from file or textbox", "script_args": [False, False, "start", "a\nb\nc"]}
    first, *others = over(**lines).orders
    assert len(others) == 2 and all(one.request.init is first.request.init for one in others)


def test_pictures_of_one_request_are_not_too_large_together(context, over, monkeypatch):
    pictures = [encoded(Image.new("RGB", (100, 100), (shade, 0, 0))) for shade in range(3)]
    monkeypatch.setattr(context, "limits", ApiLimits(request_pixels=20_000))
    with pytest.raises(Refused, match=r"up to init_images\[2\] have more than"):
        over(init_images=pictures)


def test_wildcards_are_chosen_anew_for_each_picture_by_its_seed(text):
    orders = text(prompt="a {red|blue|green} cat", seed=5, batch_size=6).orders
    assert sum(one.request.count for one in orders) == 6
    assert len({one.request.prompt for one in orders}) > 1
    seeds = [one.request.seed + number for one in orders for number in range(one.request.count)]
    assert seeds == [5, 6, 7, 8, 9, 10]
