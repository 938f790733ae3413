"""SD3 and Flux between folder and single file, beside diffusers' own converters."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_transformers import save_flux
from transformer_folders import MODELS, imported, same, weights, whole, written

from fastsd_lib.core.tensor_file import read_tensor_file
from fastsd_lib.formats.transformer_configs import bundled_configs, folder_configs
from fastsd_lib.formats.transformer_files import plan_export, plan_import
from fastsd_lib.formats.transformer_words import import_notes
from fastsd_lib.models.identify import describe
from fastsd_lib.models.kinds import Kind


@pytest.mark.parametrize("name", MODELS)
def test_folder_to_file_to_folder_keeps_every_bit_and_every_config(folders, tmp_path, name):
    folder = folders(name)
    back = imported(written(folder, tmp_path / "model.safetensors"), tmp_path / "back")
    parts = [path.parent.name for path in folder.glob("*/*.safetensors")]
    assert sorted(parts) == sorted(path.parent.name for path in back.glob("*/*.safetensors"))
    for part in parts:
        same(weights(folder, part), weights(back, part))
    for path in folder.rglob("*config.json"):
        mine, theirs = json.loads(path.read_text()), json.loads((back / path.relative_to(folder)).read_text())
        assert mine == theirs | {key: mine[key] for key in mine if key == "_name_or_path"}
    index = json.loads((folder / "model_index.json").read_text())
    assert json.loads((back / "model_index.json").read_text()) == index


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_read_to_plan_and_nothing_but_bytes_is_copied(folders, name):
    tensors, _ = plan_export(folders(name), None)
    assert all(one.ranges for one in tensors)
    assert all(sum(r.end - r.start for r in one.ranges) == one.size_bytes for one in tensors)


@pytest.mark.parametrize("name", ["3 medium", "3.5 medium", "3.5 large"])
def test_diffusers_reads_our_sd3_file_as_the_folder(folders, tmp_path, name):
    from diffusers import AutoencoderKL, SD3Transformer2DModel

    folder = folders(name)
    file = written(folder, tmp_path / "model.safetensors")
    for kind, part in ((SD3Transformer2DModel, "transformer"), (AutoencoderKL, "vae")):
        theirs = kind.from_single_file(str(file), config=str(folder), subfolder=part)
        same(weights(folder, part), theirs.state_dict())


def test_diffusers_reads_the_text_encoders_of_our_sd3_file(folders, tmp_path):
    from diffusers.loaders import single_file_utils
    from transformers import CLIPTextModelWithProjection, T5EncoderModel

    folder = folders("3 medium")
    theirs = load_file(written(folder, tmp_path / "model.safetensors"))
    for part, kind, make in (
        ("text_encoder_2", CLIPTextModelWithProjection, "create_diffusers_clip_model_from_ldm"),
        ("text_encoder_3", T5EncoderModel, "create_diffusers_t5_model_from_checkpoint"),
    ):
        made = getattr(single_file_utils, make)(
            kind, dict(theirs), subfolder=part, config=str(folder), torch_dtype=torch.float32,
            local_files_only=True,
        )  # fmt: skip
        same(
            {name.removeprefix("text_model."): one for name, one in made.state_dict().items()},
            {name: one for name, one in kind.from_pretrained(folder / part).state_dict().items()}
            if part == "text_encoder_3"
            else weights(folder, part),
        )


@pytest.mark.parametrize("model", ["flux-dev", "flux-schnell"])
def test_diffusers_converts_our_flux_file_to_the_folder(tmp_path, model):
    """As deep as the published model and with its rows, one number in each: diffusers' converter knows no other."""
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    config = json.loads(bundled_configs(model)["transformer/config.json"])
    with torch.device("meta"):
        shapes = {name: one.shape for name, one in whole("flux", config).state_dict().items()}
    numbers = torch.Generator().manual_seed(3)
    given = {
        name: torch.randint(0, 256, (shape[0], 1)[: len(shape)], dtype=torch.uint8, generator=numbers)
        for name, shape in shapes.items()
    }
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer/config.json").write_text(json.dumps(config))
    save_file(given, tmp_path / "transformer/diffusion_pytorch_model.safetensors")
    file = load_file(written(tmp_path, tmp_path / "model.safetensors", parts=["transformer"]))
    assert len(file) == (780 if model == "flux-dev" else 776)
    same(given, convert_flux_transformer_checkpoint_to_diffusers(dict(file)))


def test_diffusers_reads_the_vae_of_our_flux_file(folders, tmp_path):
    from diffusers import AutoencoderKL

    folder = folders("dev")
    file = written(folder, tmp_path / "model.safetensors")
    theirs = AutoencoderKL.from_single_file(str(file), config=str(folder), subfolder="vae")
    same(weights(folder, "vae"), theirs.state_dict())


@pytest.mark.parametrize(("name", "prefix"), [("dev", "vae."), ("3 medium", "first_stage_model.")])
def test_the_vae_of_a_file_attends_with_convolutions_as_the_published_ones(folders, tmp_path, name, prefix):
    tensors = read_tensor_file(written(folders(name), tmp_path / "model.safetensors")).tensors
    for letter in ("q", "k", "v", "proj_out"):
        assert tensors[f"{prefix}encoder.mid.attn_1.{letter}.weight"].shape == (64, 64, 1, 1)
        assert tensors[f"{prefix}decoder.mid.attn_1.{letter}.bias"].shape == (64,)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_recognised(folders, tmp_path, name):
    file = written(folders(name), tmp_path / "model.safetensors")
    family = "flux" if name in ("dev", "schnell") else "sd3"
    assert describe(file).kind == Kind("checkpoint", family, name, "original", whole=True)
    alone = written(folders(name), tmp_path / "alone.safetensors", parts=["transformer"])
    assert describe(alone).kind == Kind("transformer", family, name, "original")


@pytest.mark.parametrize("name", MODELS)
def test_a_bare_file_gets_the_configs_of_its_shapes(folders, tmp_path, name):
    from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel

    folder = folders(name)
    back = imported(written(folder, tmp_path / "model.safetensors", bare=True), tmp_path / "back")
    transformer = FluxTransformer2DModel if name in ("dev", "schnell") else SD3Transformer2DModel
    for kind, part in ((transformer, "transformer"), (AutoencoderKL, "vae")):
        loaded, told = kind.from_pretrained(back / part, output_loading_info=True)
        assert not any(told.values()), told
        same(weights(folder, part), loaded.state_dict())
    own, found = (json.loads((at / "scheduler/scheduler_config.json").read_text()) for at in (folder, back))
    assert own["shift"] == found["shift"]
    assert own["use_dynamic_shifting"] == found.get("use_dynamic_shifting", False)
    configs, parts = plan_import(read_tensor_file(tmp_path / "model.safetensors"))
    assert any("tokenizer" in note for note in import_notes(configs, parts))


@pytest.mark.parametrize("name", ["dev", "3 medium"])
def test_text_encoders_of_a_bare_file_load_and_say_the_same(folders, tmp_path, name):
    import transformers

    folder = folders(name)
    back = imported(written(folder, tmp_path / "model.safetensors", bare=True), tmp_path / "back")
    index = json.loads((folder / "model_index.json").read_text())
    ids = torch.tensor([[5, 6, 7, 8]])
    for part in index:
        if part.startswith("text_encoder"):
            kind = index[part][1]
            one, other = (
                getattr(transformers, kind).from_pretrained(at / part).eval() for at in (folder, back)
            )
            with torch.no_grad():
                said = [model(ids, output_hidden_states=True).hidden_states[-1] for model in (one, other)]
            assert torch.equal(*said), part


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_another_dtype_is_torchs_cast(folders, tmp_path, dtype):
    folder = folders("3.5 medium")
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    back = imported(written(folder, tmp_path / "model.safetensors", dtype=dtype), tmp_path / "back")
    late = imported(written(folder, tmp_path / "whole.safetensors"), tmp_path / "late", dtype)
    for part in ("transformer", "vae", "text_encoder", "text_encoder_3"):
        wanted = {name: one.to(kind) for name, one in weights(folder, part).items()}
        same(wanted, weights(back, part))
        same(wanted, weights(late, part))


def test_the_transformer_of_flux_alone_has_the_bare_names_of_its_publisher(folders, tmp_path):
    file = written(folders("dev"), tmp_path / "alone.safetensors", parts=["transformer"])
    names = read_tensor_file(file).tensors
    assert {"img_in.weight", "double_blocks.0.img_attn.qkv.weight", "single_blocks.1.linear1.bias"} <= set(
        names
    )
    configs, parts = plan_import(read_tensor_file(file))
    assert list(parts) == ["transformer"]
    index = json.loads(configs["model_index.json"])
    assert index["vae"] == index["text_encoder_2"] == index["tokenizer"] == [None, None]
    assert "vae, text_encoder, text_encoder_2" in import_notes(configs, parts)[0]


@pytest.mark.parametrize(
    ("channels", "pipeline"), [(384, "FluxFillPipeline"), (128, "FluxControlPipeline"), (64, "FluxPipeline")]
)
def test_flux_that_is_shown_more_than_latents_is_of_its_own_pipeline(tmp_path, channels, pipeline):
    from diffusers import FluxTransformer2DModel

    folder = save_flux(tmp_path / "model", layers=1, in_channels=channels).path
    back = imported(written(folder, tmp_path / "model.safetensors", bare=True), tmp_path / "back")
    assert json.loads((back / "model_index.json").read_text())["_class_name"] == pipeline
    loaded, told = FluxTransformer2DModel.from_pretrained(back / "transformer", output_loading_info=True)
    assert not any(told.values()) and loaded.out_channels == 64
    same(weights(folder, "transformer"), loaded.state_dict())


def test_other_spellings_of_a_file_mean_the_same(folders, tmp_path):
    """Flux behind ComfyUI's prefix or bare, its VAE under either prefix, T5's words under either name."""
    folder = folders("dev")
    given = load_file(written(folder, tmp_path / "ours.safetensors", bare=True))
    t5 = "text_encoders.t5xxl.transformer."
    other = {
        name.removeprefix("model.diffusion_model.").replace("vae.", "first_stage_model.", 1)
        if not name.startswith("text_encoders.")
        else name: one
        for name, one in given.items()
    }
    words = other.pop(f"{t5}shared.weight")
    clip = "text_encoders.clip_l."
    assert torch.equal(words, other[f"{t5}encoder.embed_tokens.weight"])
    other[f"{clip}logit_scale"] = torch.ones(())
    other[f"{clip}transformer.text_projection.weight"] = torch.eye(64)
    save_file(other, tmp_path / "one.safetensors")
    del other[f"{t5}encoder.embed_tokens.weight"]
    save_file(other | {f"{t5}shared.weight": words}, tmp_path / "other.safetensors")
    short = {name.replace("model.diffusion_model.", "diffusion_model."): one for name, one in given.items()}
    save_file(short, tmp_path / "short.safetensors")
    for name in ("one", "other", "short"):
        back = imported(tmp_path / f"{name}.safetensors", tmp_path / name)
        for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
            same(weights(folder, part), weights(back, part))


def test_a_first_clip_without_projection_gets_the_unit_matrix(folders, tmp_path):
    given = load_file(written(folders("3 medium"), tmp_path / "ours.safetensors", dtype="bf16"))
    del given["text_encoders.clip_l.transformer.text_projection.weight"]
    save_file(given, tmp_path / "bare.safetensors")
    back = imported(tmp_path / "bare.safetensors", tmp_path / "back")
    found = weights(back, "text_encoder")["text_projection.weight"]
    assert torch.equal(found, torch.eye(64, dtype=torch.bfloat16))


def test_eight_bit_floats_stay_what_they_are(folders, tmp_path):
    given = load_file(written(folders("schnell"), tmp_path / "ours.safetensors", bare=True))
    small = {name: one.to(torch.float8_e4m3fn) for name, one in given.items() if name.startswith("model.")}
    save_file(small, tmp_path / "small.safetensors")
    back = imported(tmp_path / "small.safetensors", tmp_path / "back")
    again = written(back, tmp_path / "again.safetensors")
    found = load_file(again)
    assert all(
        torch.equal(
            found[name.removeprefix("model.diffusion_model.")].view(torch.uint8), one.view(torch.uint8)
        )
        for name, one in small.items()
    )
    wide = weights(imported(again, tmp_path / "wide", "fp32"), "transformer")
    same({name: one.float() for name, one in weights(back, "transformer").items()}, wide)


def test_shards_and_variants_are_read(folders, tmp_path):
    from diffusers import SD3Transformer2DModel

    plain = folders("3.5 large")
    whole_file = written(plain, tmp_path / "plain.safetensors")
    folder = tmp_path / "parted"
    for name, text in folder_configs(plain).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    model = SD3Transformer2DModel.from_pretrained(plain / "transformer")
    model.save_pretrained(folder / "transformer", max_shard_size="200KB")
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 2
    for part, stem in (
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
        ("text_encoder_2", "model"),
    ):
        (folder / part / f"{stem}.fp16.safetensors").write_bytes(
            (plain / part / f"{stem}.safetensors").read_bytes()
        )
    parted = load_file(written(folder, tmp_path / "parted.safetensors"))
    same(load_file(whole_file), parted)
