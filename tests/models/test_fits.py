"""What goes with what: every wrong combination is refused or warned of, with what to take instead."""

from __future__ import annotations

import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.model_files import FAMILY_NAMES, ModelFiles
from fastsd_lib.models import fits
from fastsd_lib.models.controls import known_controls
from fastsd_lib.models.fits import check_base, check_fit, check_size, check_training
from fastsd_lib.models.identify import describe
from fastsd_lib.models.kinds import Kind
from fastsd_lib.models.known_models import find_known
from fastsd_lib.models.pieces import Piece, piece_of
from fastsd_lib.models.registry import EMBEDDED_FOLDER, EXTRAS_FOLDER

FAMILIES = ("sd1", "sd2", "sdxl", "sdxl_refiner", "sd3", "flux")
PARTS = ("lora", "controlnet", "control-lora", "t2i-adapter", "ip-adapter", "embedding")


# ------------------------------------------------------------------ parts


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("base", FAMILIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_part_goes_with_its_own_family_alone_and_a_refusal_names_both(kind, base, family):
    fit = check_fit(Piece("checkpoint", base, name="big.safetensors"), Piece(kind, family, name="small.pt"))
    if family == base or (kind == "embedding" and {family, base} == {"sdxl", "sdxl_refiner"}):
        assert fit == fits.FITS
        return
    assert not fit.ok and not fit.warning
    assert f"small.pt is made for {FAMILY_NAMES[family]}, and the model big.safetensors" in fit.refusal
    assert (
        fit.refusal.endswith(f"is {FAMILY_NAMES[base]}.")
        and f"a model of {FAMILY_NAMES[family]}" in fit.instead
    )


@pytest.mark.parametrize(
    ("base", "kind", "instead"),
    [
        ("sdxl", "controlnet", "take xinsir-canny-sdxl or another of `fastsd models list --controls --family sdxl`"),
        ("flux", "controlnet", "take flux-canny-controlnet-v3 or another of"),
        ("sdxl_refiner", "controlnet", "take a model of SD 1.x."),
        ("sdxl", "lora", "take a model of SD 1.x, or a LoRA for SDXL."),
        ("sd3", "embedding", "take a model of SD 1.x, or an embedding for SD 3."),
    ],
)  # fmt: skip
def test_what_to_take_instead_comes_from_the_registry(base, kind, instead):
    assert check_fit(base, Piece(kind, "sd1")).instead.startswith(instead)


@pytest.mark.parametrize("kind", PARTS)
def test_a_part_whose_base_cannot_be_told_is_a_warning_only(kind):
    fit = check_fit("sdxl", Piece(kind, "", name="some"))
    assert fit.ok and "it cannot be told which base model" in fit.warning and "not for SDXL" in fit.warning
    unknown = check_fit(Piece("checkpoint", ""), Piece(kind, "sd1"))
    assert unknown.ok and "it cannot be told what the model is" in unknown.warning


@pytest.mark.parametrize("build", ["3 medium", "3.5 medium", "3.5 large", "3.5 large turbo", "", "union"])
def test_a_controlnet_for_another_sd3_is_refused_where_both_are_known(build):
    medium = next(one for one in known_controls() if one.name == "instantx-canny-sd3")
    fit = check_fit(Piece("checkpoint", "sd3", build, name="big"), medium)
    if build in ("3 medium", "", "union"):
        assert fit == fits.FITS
        return
    named = f"SD {build.removesuffix(' turbo')}"
    assert (
        fit.refusal == f"the ControlNet {medium.name} is made for SD 3 medium, and the model big is {named}."
    )
    assert fit.instead.endswith("a model of SD 3 medium.")
    assert fit.instead.startswith("take sd3.5-large-canny or another of") == ("large" in build)
    file = Kind("controlnet", "sd3", "3 medium")  # as a file's tensors say it
    assert check_fit(Piece("checkpoint", "sd3", build), file).refusal.endswith(f"is {named}.")


def test_a_lora_of_a_model_that_predicts_something_else_is_a_warning():
    base = Piece("checkpoint", "sd2", prediction="v_prediction")
    assert "expect weak or strange" in check_fit(base, Piece("lora", "sd2", prediction="epsilon")).warning
    assert check_fit(base, Piece("lora", "sd2", prediction="v_prediction")) == fits.FITS


@pytest.mark.parametrize(
    ("base", "vae", "said"),
    [
        ("sd1", "4 latent channels", ""),
        ("sd1", "16 latent channels", "has 16 latent channels, and SD 1.x draws in 4."),
        ("sdxl", "16 latent channels", "has 16 latent channels, and SDXL draws in 4."),
        ("sd3", "4 latent channels", "has 4 latent channels, and SD 3 draws in 16."),
        ("flux", "16 latent channels", ""),
        ("flux", "4 latent channels", "has 4 latent channels, and Flux draws in 16."),
    ],
)
def test_a_vae_of_other_latents_is_refused(base, vae, said):
    fit = check_fit(base, Piece("vae", variant=vae, name="some.vae"))
    assert (said in fit.refusal) if said else fit == fits.FITS
    if said:
        wanted = {
            "sd1": "take sd-vae-ft-mse, or the model's own.",
            "sdxl": "take sdxl-vae-fp16-fix, or the model's own.",
        }
        assert fit.instead == wanted.get(base, "take the model's own.")


def test_known_vaes_go_with_the_families_that_share_them():
    vae = find_known("sd-vae-ft-mse")
    assert check_fit("sd1", vae).ok and check_fit("sd2", vae).ok
    assert "sd-vae-ft-mse is made for SD 1.x, and the model is SDXL." in check_fit("sdxl", vae).refusal
    assert check_fit("sdxl_refiner", find_known("sdxl-vae-fp16-fix")).ok
    assert "cannot be told" in check_fit("sd1", Piece("vae", variant="tiny (TAESD)")).warning


def test_whole_models_and_strangers_are_no_parts_and_parts_are_no_base():
    assert (
        "is a whole model, not something that is added"
        in check_fit("sd1", Piece("checkpoint", "sd1", name="a")).refusal
    )
    assert (
        "is no base model: it is of the kind LoRA"
        in check_fit(Piece("lora", "sd1", name="a"), Piece("lora")).refusal
    )
    assert check_fit("sd1", Piece("upscaler")) == fits.FITS


def test_real_files_known_models_and_known_controls_are_all_understood():
    base = describe(EMBEDDED_FOLDER)
    lora = describe(next((EXTRAS_FOLDER / "Lora").glob("*.safetensors")))
    assert (piece_of(base).kind, piece_of(base).family) == ("checkpoint", "sd1")
    assert piece_of(lora).kind == "lora" and check_fit(base, lora).ok
    assert piece_of(find_known("sdxl-refiner")).family == "sdxl_refiner"
    assert piece_of(Kind("lora", "sdxl")) == Piece("lora", "sdxl")
    assert piece_of(ModelFiles("sdxl", "diffusers", EMBEDDED_FOLDER)) == Piece(
        "checkpoint", "sdxl", name="embedded"
    )
    for control in known_controls():
        assert check_fit(control.family, control) == fits.FITS
        others = [family for family in FAMILIES if family != control.family]
        assert not any(check_fit(family, control).ok for family in others)


def test_hostile_names_steer_no_terminal():
    assert "\x1b" not in check_fit("sdxl", Piece("lora", "sd1", name="\x1b[31mred")).refusal


# ------------------------------------------------------------------ base models


@pytest.mark.parametrize(
    ("base", "said", "instead"),
    [
        (Piece("checkpoint", "sd1"), "", ""),
        (Piece("checkpoint", "sd1", "base", "v_prediction"), "", ""),
        (Piece("checkpoint", "sdxl", name="x"), "x is a sdxl model; only SD 1.x models are trained here.", "SD 1.x model"),
        (Piece("checkpoint", "sdxl_refiner", name="x"), "only SD 1.x models are trained here", "SD 1.x model"),
        (Piece("checkpoint", "flux", name="x"), "only SD 1.x models are trained here", "embedded"),
        (Piece("checkpoint", "sd1", "inpainting", name="x"), "x is a model for inpainting; only text-to-image", "1.5"),
        (Piece("checkpoint", "sd1", "instruct-pix2pix", name="x"), "x is a model for instruct-pix2pix; only", "1.5"),
        (Piece("lora", "sd1", name="x"), "x is no base model: it is of the kind LoRA.", "checkpoint"),
    ],
)  # fmt: skip
def test_only_text_to_image_models_of_trained_families_are_trained(base, said, instead):
    fit = check_base(base, "train")
    assert (said in fit.refusal and instead in fit.instead) if said else fit == fits.FITS


@pytest.mark.parametrize(
    ("base", "refusal", "warning"),
    [
        (Piece("checkpoint", "sd1"), "", ""),
        (Piece("checkpoint", "sd1", "inpainting"), "", ""),
        (Piece("checkpoint", "sd1", "instruct-pix2pix", name="x"), "for instruct-pix2pix, which is not drawn", ""),
        (Piece("checkpoint", "sd2", "depth to image", name="x"), "x is a model for depth to image, which is not drawn", ""),
        (Piece("checkpoint", "sd2", "unCLIP", name="x"), "x is a model for variations of a picture (unCLIP), which", ""),
        (Piece("transformer", "flux", "fill", name="x"), "x is a model for filling a masked place (Fill), which is not", ""),
        (Piece("checkpoint", "flux", "depth or canny", name="x"), "x is a model for drawing along depth or edges", ""),
        (Piece("checkpoint", "flux", "kontext"), "", ""),
        (Piece("checkpoint", "flux", "dev"), "", ""),
        (Piece("checkpoint", "sdxl_refiner", name="x"), "", "x is SDXL's refiner, made for the last steps"),
        (Piece("checkpoint", "sdxl", marks=("v_pred",), name="x"), "", "not marked for zero terminal SNR"),
        (Piece("checkpoint", "sdxl", marks=("v_pred", "ztsnr")), "", ""),
        (Piece("checkpoint", "sd2", "768", "v_prediction"), "", ""),
    ],
)  # fmt: skip
def test_models_that_are_not_drawn_with_or_only_for_some_steps_are_told(base, refusal, warning):
    fit = check_base(base, "draw")
    assert refusal in fit.refusal and bool(fit.refusal) == bool(refusal)
    assert warning in fit.warning and bool(fit.warning) == bool(warning)
    if refusal:
        assert ("Flux.1 dev" in fit.instead) == (base.family == "flux")


# ------------------------------------------------------------------ sizes


@pytest.mark.parametrize(
    ("family", "size", "more", "found", "instead"),
    [
        ("sd1", (512, 512), {}, "", ""),
        ("sd1", (512, 768), {}, "", ""),
        ("sd1", (448, 448), {}, "", ""),
        ("sd1", (768, 768), {}, "768 x 768 px is much for SD 1.x, and this model learned from 512 px", "SD 2.x (2.1)"),
        ("sd1", (1024, 1024), {}, "is much for SD 1.x", "enlarge it (hires), or a model for 1024 px such as SDXL (sdxl)."),
        ("sd1", (256, 256), {}, "is little for SD 1.x", "take 512 px."),
        ("sd2", (512, 512), {}, "", ""),
        ("sd2", (768, 768), {"prediction": "v_prediction"}, "", ""),
        ("sd2", (512, 512), {"prediction": "v_prediction"}, "is little for SD 2.x", "such as SD 1.x (1.5)"),
        ("sdxl", (1024, 1024), {}, "", ""),
        ("sdxl", (832, 1216), {}, "", ""),
        ("sdxl", (512, 512), {}, "px is little for SDXL", "take 1024 px, or a model for 512 px such as SD 1.x (1.5)."),
        ("sdxl", (512, 512), {"native": 512}, "", ""),  # turbo
        ("flux", (1024, 1024), {}, "", ""),
        ("sd1", (64, 64), {"native": 64}, "", ""),  # the embedded model
        ("sd1", (512, 512), {"native": 64}, "is much for SD 1.x, and this model learned from 64 px", "SD 1.x (1.5)"),
        ("", (512, 512), {}, "", ""),
    ],
)  # fmt: skip
def test_sizes_far_from_what_a_model_learned_from_are_warned_of(family, size, more, found, instead):
    fit = check_size(family, *size, **more)
    assert fit.ok and found in fit.warning and bool(fit.warning) == bool(found)
    assert instead in fit.instead


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
def test_a_quarter_of_the_side_is_refused_where_it_gives_noise(family):
    fit = check_size(family, 256, 256)
    assert (
        fit.refusal == f"{FAMILY_NAMES[family]} cannot do 256 x 256 px: it learned from pictures of 1024 px."
    )
    assert fit.instead == "take 1024 px, or a model for 512 px such as SD 1.x (1.5)."
    with pytest.raises(UserError) as error:
        fit.enforced()
    assert error.value.message == fit.refusal and error.value.fix == fit.instead


def test_training_tells_all_conflicts_in_one_message():
    fit = check_training(Piece("checkpoint", "sdxl", name="x"), 256)
    assert "x is a sdxl model; only SD 1.x models are trained here." in fit.refusal
    assert "SDXL cannot do 256 x 256 px" in fit.refusal and "SD 1.x model" in fit.instead
    assert check_training("sd1", 512) == fits.FITS
    large = check_training("sd1", 768)
    assert large.ok and "768 x 768 px is much for SD 1.x" in large.warning and "2.1" in large.instead


def test_a_refusal_reads_as_a_sentence_alone_and_after_the_place_it_is_about():
    fit = check_fit("sdxl", Piece("lora", "sd1"))
    with pytest.raises(UserError, match=r"^The LoRA is made for SD 1.x"):
        fit.enforced()
    with pytest.raises(UserError, match=r"^<lora:cat:1>: the LoRA is made for"):
        fit.enforced("<lora:cat:1>: ")
    assert fit.advice.startswith("the LoRA is made for SD 1.x, and the model is SDXL; take a model of SD 1.x")
    assert fits.FITS.advice == "" and fits.FITS.enforced() == ""
