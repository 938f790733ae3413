"""Merged checkpoints: the sums of plain torch, whatever the layout; what is refused; a file whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_families import save_sd2, save_sdxl, save_single_file

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import sha256_file
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.core.progress import silent
from fastsd_lib.formats import merge as merging
from fastsd_lib.formats.configs import METADATA_KEY
from fastsd_lib.formats.merge import MergeConfig, Stopped, merge
from fastsd_lib.formats.merge_sources import open_model
from fastsd_lib.formats.single_file import export_single_file

FIRST = "model.diffusion_model.input_blocks.0.0.weight"


def metadata_of(path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def another(path, seed: int, to, dtype=None, change=lambda state: state) -> ModelFiles:
    """A model of the same shape with other weights."""
    torch.manual_seed(seed)
    state = {
        name: (value + 0.1 * torch.randn_like(value) if value.is_floating_point() else value)
        for name, value in load_file(path).items()
    }
    if dtype:
        state = {
            name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()
        }
    save_file(change(state), to, metadata_of(path))
    return ModelFiles("sd1", "single_file", to)


@pytest.fixture(scope="module")
def models(tiny_pipeline, tmp_path_factory):
    """Three single files of SD 1.x, B in fp16."""
    folder = tmp_path_factory.mktemp("merged")
    a = export_single_file(
        tiny_pipeline, folder / "a.safetensors", dtype=None, metadata={"trained_by": "nobody", "rank": 4}
    )
    return {
        "a": a,
        "b": another(a.path, 1, folder / "b.safetensors", torch.float16),
        "c": another(a.path, 2, folder / "c.safetensors"),
    }


def plain(models, how) -> dict[str, torch.Tensor]:
    """The same with whole state dicts in memory."""
    states = [
        {
            name: value.float() if value.is_floating_point() else value
            for name, value in load_file(one.path).items()
        }
        for one in models
    ]
    return {
        name: how(*(state[name] for state in states))
        if states[0][name].is_floating_point()
        else states[0][name]
        for name in states[0]
    }


def same(path, expected) -> bool:
    found = load_file(path)
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("share", [0.3, 0.0, 1.0, 0.123456789])
def test_a_weighted_sum_is_torchs_to_the_last_bit(models, tmp_path, share):
    merged = merge(
        MergeConfig(models["a"], tmp_path / "m.safetensors", models["b"], multiplier=share, dtype="fp32")
    )
    expected = plain([models["a"], models["b"]], lambda a, b: (1 - share) * a + share * b)
    assert same(merged.path, expected) and merged.family == "sd1"


def test_an_added_difference_is_torchs_to_the_last_bit(models, tmp_path):
    config = MergeConfig(
        models["a"], tmp_path / "m.safetensors", models["b"], models["c"], "add_difference", 0.7, "fp32"
    )
    expected = plain([models[one] for one in "abc"], lambda a, b, c: a + 0.7 * (b - c))
    assert same(merge(config).path, expected)


@pytest.mark.parametrize(("dtype", "theirs"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_the_sum_is_rounded_once_at_the_end(models, tmp_path, dtype, theirs):
    merged = merge(
        MergeConfig(models["a"], tmp_path / "m.safetensors", models["b"], multiplier=0.5, dtype=dtype)
    )
    expected = plain([models["a"], models["b"]], lambda a, b: (0.5 * a + 0.5 * b).to(theirs))
    assert same(merged.path, expected)


def test_no_interpolation_converts_and_none_keeps_every_bit(models, tmp_path):
    kept = merge(MergeConfig(models["a"], tmp_path / "k.safetensors", method="none", dtype=None))
    assert same(kept.path, load_file(models["a"].path))
    half = merge(MergeConfig(models["a"], tmp_path / "h.safetensors", method="none", dtype="fp16"))
    assert same(half.path, plain([models["a"]], lambda a: a.half()))


def test_diffusers_loads_the_merged_file_and_draws(models, tiny_pipeline, tmp_path):
    from diffusers import StableDiffusionPipeline

    merged = merge(MergeConfig(models["a"], tmp_path / "m.safetensors", models["b"], multiplier=0.05))
    pipeline = StableDiffusionPipeline.from_single_file(
        str(merged.path), config=str(tiny_pipeline.path), safety_checker=None, local_files_only=True
    )
    drawn = pipeline("a star", num_inference_steps=2, width=64, height=64, output_type="np").images[0]
    assert drawn.shape == (64, 64, 3) and np.isfinite(drawn).all()


def test_our_engine_draws_with_the_merged_file_alone(models, tmp_path):
    from fastsd_lib.generation.engine import load_engine
    from fastsd_lib.generation.request import GenerationRequest

    merged = merge(MergeConfig(models["a"], tmp_path / "m.safetensors", models["c"], multiplier=0.05))
    (drawn,) = load_engine(merged, "cpu").generate(GenerationRequest("a star", inference_steps=2))
    assert drawn.image.size == (64, 64)


# ------------------------------------------------------------------ layouts and families


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "sdxl_refiner"])
def test_a_folder_is_merged_as_its_single_file_is(family, tiny_pipeline, tmp_path):
    """`save_single_file` spells OpenCLIP's layout out by itself: a second witness."""
    if family == "sd1":
        folder = tiny_pipeline
        single = export_single_file(folder, tmp_path / "single.safetensors", dtype=None).path
    else:
        save = save_sd2 if family == "sd2" else save_sdxl
        more = {"refines": True} if family == "sdxl_refiner" else {}
        folder = save(tmp_path / "folder", **more)
        single = save_single_file(folder, tmp_path / "single.safetensors")
    kept = merge(MergeConfig(folder, tmp_path / "m.safetensors", method="none", dtype=None))
    expected = {name: value for name, value in load_file(single).items() if "logit_scale" not in name}
    assert same(kept.path, expected)
    file = ModelFiles(folder.family, "single_file", single)
    other = another(single, 3, tmp_path / "other.safetensors")
    other = ModelFiles(folder.family, "single_file", other.path)
    by_file = merge(MergeConfig(other, tmp_path / "f.safetensors", file))
    by_folder = merge(MergeConfig(other, tmp_path / "d.safetensors", folder))
    difference = set(load_file(by_file.path)) ^ set(load_file(by_folder.path))
    assert not difference
    ours, theirs = load_file(by_folder.path), load_file(by_file.path)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if "logit_scale" not in name)


def test_an_inpainting_a_keeps_its_mask_and_gets_bs_four_inputs(tmp_path):
    usual, inpaints = save_sdxl(tmp_path / "usual"), save_sdxl(tmp_path / "inpaints", in_channels=9, seed=9)
    files = {
        name: ModelFiles("sdxl", "single_file", save_single_file(one, tmp_path / f"{name}.safetensors"))
        for name, one in (("usual", usual), ("inpaints", inpaints))
    }
    merged = merge(
        MergeConfig(
            files["inpaints"], tmp_path / "m.safetensors", files["usual"], multiplier=0.25, dtype="fp32"
        )
    )
    a, b, m = (load_file(one.path)[FIRST] for one in (files["inpaints"], files["usual"], merged))
    assert torch.equal(m[:, :4], 0.75 * a[:, :4] + 0.25 * b) and torch.equal(m[:, 4:], a[:, 4:])
    assert json.loads(metadata_of(merged.path)["sd_merge_recipe"])["is_inpainting"] is True
    difference = merge(
        MergeConfig(
            files["inpaints"],
            tmp_path / "d.safetensors",
            files["usual"],
            files["usual"],
            "add_difference",
            dtype=None,
        )
    )
    assert torch.equal(load_file(difference.path)[FIRST], a)
    with pytest.raises(UserError, match=r"B, inpaints, takes a picture and a mask.*A, usual") as error:
        merge(MergeConfig(files["usual"], tmp_path / "n.safetensors", files["inpaints"]))
    assert error.value.fix == "take the inpainting model as A."


def test_other_families_and_shapes_are_refused_by_both_names(models, narrow_sd15, tmp_path):
    sd2 = save_sd2(tmp_path / "second")
    out = tmp_path / "out" / "m.safetensors"
    with pytest.raises(UserError, match=r"A, a, is SD 1.x, and B, second, is SD 2.x"):
        merge(MergeConfig(models["a"], out, sd2))
    with pytest.raises(UserError, match=r"C, narrow,? .*A, a"):
        merge(MergeConfig(models["a"], out, models["b"], narrow_sd15, "add_difference"))
    wider = another(
        models["a"].path, 4, tmp_path / "wider.safetensors",
        change=lambda state: state | {FIRST: torch.zeros(64, 4, 3, 3)},
    )  # fmt: skip
    with pytest.raises(
        UserError, match=r"A, a, and B, wider, are not of one shape: .* 32x4x3x3 and 64x4x3x3"
    ):
        merge(MergeConfig(models["a"], out, wider))
    with pytest.raises(UserError, match="is a flux model"):
        merge(MergeConfig(models["a"], out, ModelFiles("flux", "single_file", tmp_path / "x.safetensors")))
    assert not out.exists()


def test_a_pickled_model_is_read_without_running_it(models, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch.save({"state_dict": load_file(models["b"].path)}, tmp_path / "b.ckpt")
    pickled = ModelFiles("sd1", "single_file", tmp_path / "b.ckpt")
    by_ckpt = merge(MergeConfig(models["a"], tmp_path / "p.safetensors", pickled))
    by_file = merge(MergeConfig(models["a"], tmp_path / "f.safetensors", models["b"]))
    assert same(by_ckpt.path, load_file(by_file.path))


class _Evil:
    def __reduce__(self):
        import os

        return os.system, ("touch hacked",)


def test_a_pickle_that_is_no_weights_is_refused_and_not_run(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": load_file(models["b"].path), "more": _Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match=r"evil\.ckpt"):
        merge(
            MergeConfig(
                models["a"],
                tmp_path / "m.safetensors",
                ModelFiles("sd1", "single_file", tmp_path / "evil.ckpt"),
            )
        )
    assert not (tmp_path / "hacked").exists() and not (tmp_path / "m.safetensors").exists()


# ------------------------------------------------------------------ VAE, what is left out, metadata


def test_another_vae_is_baked_in_from_a_file_a_model_and_a_folder(
    models, tiny_pipeline, narrow_sd15, tmp_path
):
    vae = {
        name: value
        for name, value in load_file(models["c"].path).items()
        if name.startswith("first_stage_model.")
    }
    save_file(
        {name.removeprefix("first_stage_model."): value for name, value in vae.items()},
        tmp_path / "vae.safetensors",
    )
    for path in (tmp_path / "vae.safetensors", models["c"].path):
        merged = merge(
            MergeConfig(
                models["a"], tmp_path / f"m-{path.stem}.safetensors", models["b"], dtype="fp32", vae=path
            )
        )
        found = load_file(merged.path)
        assert all(torch.equal(found[name], value) for name, value in vae.items())
    own = merge(
        MergeConfig(
            models["b"],
            tmp_path / "own.safetensors",
            method="none",
            dtype="fp32",
            vae=tiny_pipeline.path / "vae",
        )
    )
    expected, found = load_file(models["a"].path), load_file(own.path)
    assert all(torch.equal(found[name], expected[name]) for name in vae)
    with pytest.raises(UserError, match=r"is a VAE of another shape than that of A, a"):
        merge(MergeConfig(models["a"], tmp_path / "n.safetensors", models["b"], vae=narrow_sd15.path / "vae"))


def test_what_is_discarded_is_left_out_and_the_rest_stays(models, tmp_path):
    merged = merge(
        MergeConfig(
            models["a"], tmp_path / "m.safetensors", models["b"], discard=r"^cond_stage_model\.|bias$"
        )
    )
    names = set(load_file(models["a"].path))
    left = {name for name in names if not name.startswith("cond_stage_model.") and not name.endswith("bias")}
    assert set(load_file(merged.path)) == left
    for wrong, said in (("(", "no regular expression"), (".", "leaves no U-Net")):
        with pytest.raises(UserError, match=said):
            merge(MergeConfig(models["a"], tmp_path / "n.safetensors", models["b"], discard=wrong))


def test_averages_that_only_one_model_has_are_not_taken_for_the_merged_ones(models, tmp_path):
    def averaged(state):
        return state | {
            "model_ema.diffusion_modelout2bias": torch.zeros(4),
            "model_ema.decay": torch.tensor(0.9),
        }

    a = another(models["a"].path, 5, tmp_path / "ema.safetensors", change=averaged)
    merged = merge(MergeConfig(a, tmp_path / "m.safetensors", models["b"]))
    assert not any(name.startswith("model_ema.") for name in load_file(merged.path))


def test_the_recipe_names_the_models_by_hash_and_carries_older_recipes(models, tmp_path):
    once = merge(
        MergeConfig(
            models["a"], tmp_path / "once.safetensors", models["b"], multiplier=0.25, discard="position_ids"
        )
    )
    twice = merge(MergeConfig(once, tmp_path / "twice.safetensors", models["c"], metadata={"note": "mine"}))
    first, second = metadata_of(once.path), metadata_of(twice.path)
    hashes = {name: sha256_file(one.path) for name, one in (models | {"once": once}).items()}
    recipe = json.loads(first["sd_merge_recipe"])
    assert (recipe["primary_model_hash"], recipe["secondary_model_hash"]) == (hashes["a"], hashes["b"])
    assert (recipe["tertiary_model_hash"], recipe["interp_method"], recipe["multiplier"]) == (
        None,
        "Weighted sum",
        0.25,
    )
    assert (recipe["type"], recipe["save_as_half"], recipe["discard_weights"]) == (
        "webui",
        True,
        "position_ids",
    )
    merged = json.loads(second["sd_merge_models"])
    assert set(merged) == {hashes[name] for name in ("a", "b", "c", "once")}
    assert merged[hashes["once"]]["sd_merge_recipe"] == recipe
    assert (second["trained_by"], second["note"], second["modelspec.title"]) == ("nobody", "mine", "twice")
    assert second["modelspec.architecture"] == "stable-diffusion-v1" and METADATA_KEY in second
    assert second["modelspec.hash_sha256"] != first["modelspec.hash_sha256"]


def test_metadata_and_recipe_are_left_out_where_nobody_wants_them(models, tmp_path):
    bare = merge(
        MergeConfig(models["a"], tmp_path / "m.safetensors", models["b"], keep_metadata=False, recipe=False)
    )
    found = metadata_of(bare.path)
    assert "trained_by" not in found and "sd_merge_recipe" not in found and METADATA_KEY in found


def test_hashes_are_taken_from_whoever_remembers_them(models, tmp_path):
    asked = []
    merge(
        MergeConfig(models["a"], tmp_path / "m.safetensors", models["b"]),
        hash_of=lambda path: asked.append(path) or "0" * 64,
    )
    assert asked == [models["a"].path, models["b"].path]


def test_the_yaml_beside_a_model_is_copied(models, tmp_path):
    shutil.copy(models["b"].path, tmp_path / "v.safetensors")
    (tmp_path / "v.yaml").write_text("model: v")
    b = ModelFiles("sd1", "single_file", tmp_path / "v.safetensors")
    merge(MergeConfig(models["a"], tmp_path / "m.safetensors", b, config_from="b"))
    assert (tmp_path / "m.yaml").read_text() == "model: v"
    merge(MergeConfig(models["a"], tmp_path / "n.safetensors", b))
    assert not (tmp_path / "n.yaml").exists()


# ------------------------------------------------------------------ whole or not at all


def test_a_taken_name_is_refused_and_the_file_stays(models, tmp_path):
    taken = tmp_path / "m.safetensors"
    taken.write_bytes(b"mine")
    with pytest.raises(UserError, match="is there already") as error:
        merge(MergeConfig(models["a"], taken, models["b"]))
    assert taken.read_bytes() == b"mine" and "another name" in error.value.fix


def test_it_can_be_stopped_and_leaves_nothing(models, tmp_path):
    asked = iter(range(10_000))
    with pytest.raises(Stopped):
        merge(
            MergeConfig(models["a"], tmp_path / "m.safetensors", models["b"]),
            should_stop=lambda: next(asked) > 40,
        )
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_before_a_byte_is_written(models, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(merging.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(UserError, match=r"needs 0\.\d GB") as error:
        merge(MergeConfig(models["a"], tmp_path / "m.safetensors", models["b"]))
    assert "free some space" in error.value.fix and list(tmp_path.iterdir()) == []


def test_progress_runs_to_its_end(models, tmp_path):
    events = []
    merge(MergeConfig(models["a"], tmp_path / "m.safetensors", models["b"]), report=events.append)
    tasks = list(dict.fromkeys(event.task for event in events))
    assert tasks == ["hashes of the models", "writing m.safetensors"]
    assert events[-1].done == events[-1].total == len(load_file(models["a"].path))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"method": "add_difference"}, "Add difference needs a model C"),
        ({"b": None}, "Weighted sum needs a model B"),
        ({"method": "magic"}, "method is 'magic'"),
        ({"multiplier": float("nan")}, "multiplier is nan"),
        ({"dtype": "int4"}, "No dtype 'int4'"),
        ({"out": "m.ckpt"}, "does not end in .safetensors"),
    ],
)
def test_choices_that_cannot_be_are_named(models, tmp_path, fields, said):
    given = {"out": "m.safetensors", "b": models["b"]} | fields
    given["out"] = tmp_path / given["out"]
    with pytest.raises(UserError, match=said):
        merge(MergeConfig(models["a"], **given))


def test_values_that_are_no_numbers_are_found_and_named(models, tmp_path):
    broken = another(
        models["a"].path, 6, tmp_path / "broken.safetensors",
        change=lambda state: state | {FIRST: torch.full_like(state[FIRST], float("nan"))},
    )  # fmt: skip
    with pytest.raises(UserError, match=r"input_blocks\.0\.0\.weight holds values that are no numbers"):
        merge(MergeConfig(models["a"], tmp_path / "m.safetensors", broken))
    large = another(
        models["a"].path, 7, tmp_path / "large.safetensors",
        change=lambda state: state | {FIRST: torch.full_like(state[FIRST], 1e6)},
    )  # fmt: skip
    with pytest.raises(UserError, match="beyond 65504"):
        merge(MergeConfig(models["a"], tmp_path / "m.safetensors", large))
    assert not (tmp_path / "m.safetensors").exists()


def test_blocks_are_the_same_whatever_the_width_on_disk(models):
    """B is half as wide on the disk as A: a tensor larger than a block must still meet its own values."""
    a, b = (open_model(models[one], silent) for one in "ab")
    largest = max(a.tensors, key=lambda name: a.tensors[name].count)
    one, other = ([len(block) for block in model.tensors[largest].blocks()] for model in (a, b))
    assert one == other and sum(one) == a.tensors[largest].count
