"""SD3 and Flux between folder and single file, beside diffusers' own converters."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_transformers import save_flux, save_sd3

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.tensor_file import NewTensor, header_bytes, read_tensor_file, write_tensor_file
from fastsd_lib.formats.configs import METADATA_KEY
from fastsd_lib.formats.conversion import ConversionChoices, convert_model
from fastsd_lib.formats.flux_maps import flux_table
from fastsd_lib.formats.transformer_configs import bundled_configs, carried_configs, folder_configs
from fastsd_lib.formats.transformer_files import plan_export, plan_import, plan_repack
from fastsd_lib.formats.transformer_parts import TIED, own_name, part_table
from fastsd_lib.formats.transformer_words import import_notes
from fastsd_lib.models.identify import describe
from fastsd_lib.models.kinds import Kind
from fastsd_lib.workflows.converting import convert

MODELS = {
    "dev": lambda folder: save_flux(folder),
    "schnell": lambda folder: save_flux(folder, guidance=False),
    "3 medium": lambda folder: save_sd3(folder),
    "3.5 medium": lambda folder: save_sd3(folder, "3.5 medium", layers=3),
    "3.5 large": lambda folder: save_sd3(folder, "3.5 large", t5=False),
}
BUNDLED = ("flux-dev", "flux-schnell", "sd3-medium", "sd35-medium", "sd35-large")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Every tiny model, saved when it is first asked for."""
    root, made = tmp_path_factory.mktemp("transformers"), {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = MODELS[name](root / name.replace(" ", "_")).path
        return made[name]

    return folder


def written(folder: Path, path: Path, bare: bool = False, **choices) -> Path:
    tensors, header = plan_export(folder, **({"dtype": None} | choices))
    if bare:
        header.pop(METADATA_KEY, None)
    write_tensor_file(path, tensors, header)
    return path


def imported(path: Path, folder: Path, dtype: str | None = None) -> Path:
    configs, parts = plan_import(read_tensor_file(path), dtype)
    for name, text in configs.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for part, tensors in parts.items():
        (folder / part).mkdir(exist_ok=True)
        stem = "diffusion_pytorch_model" if part in ("transformer", "vae") else "model"
        write_tensor_file(folder / part / f"{stem}.safetensors", tensors, {"format": "pt"})
    return folder


def weights(folder: Path, part: str) -> dict[str, torch.Tensor]:
    (file,) = (folder / part).glob("*.safetensors")
    return {name.removeprefix("text_model."): one for name, one in load_file(file).items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert sorted(one) == sorted(other)
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        assert torch.equal(one[name], other[name]), name


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


# ------------------------------------------------------------------ through the doors that users open


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("name", ["dev", "3.5 medium"])
def test_convert_goes_there_and_back(folders, tmp_path, name, suffix):
    folder = folders(name)
    file = convert(folder, tmp_path / f"model{suffix}")
    assert (file.family, file.layout, file.notes) == ("flux" if name == "dev" else "sd3", "single_file", ())
    if suffix == ".safetensors":
        said = read_tensor_file(file.path).metadata
        assert (said["modelspec.title"], said["modelspec.resolution"]) == ("model", "1024x1024")
        wanted = "flux-1-dev" if name == "dev" else "stable-diffusion-v3.5-medium"
        assert said["modelspec.architecture"] == wanted
    else:
        held = torch.load(file.path, weights_only=True)["state_dict"]
        same(load_file(written(folder, tmp_path / "plain.safetensors")), held)
    back = convert(file.path, tmp_path / "back")
    assert (back.layout, back.notes) == ("diffusers", ())
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        same(weights(folder, part), weights(back.path, part))


def test_diffusers_and_our_engine_draw_from_what_came_back(folders, tmp_path):
    """The folder that was made of the file draws the very picture of the folder that the file was made of."""
    from fastsd_lib.core.model_files import ModelFiles
    from fastsd_lib.generation.engine import load_engine
    from fastsd_lib.generation.request import GenerationRequest

    file = convert_model(folders("dev"), tmp_path / "model.safetensors")
    back = convert_model(file.path, tmp_path / "back")
    order = GenerationRequest("a red star", inference_steps=1, seed=3, width_px=32, height_px=32)
    made = [
        load_engine(ModelFiles("flux", "diffusers", path), device="cpu").generate(order)[0].image
        for path in (folders("dev"), back.path)
    ]
    assert np.array_equal(*(np.asarray(image) for image in made))


def test_diffusers_draws_from_our_sd3_file_what_it_draws_from_the_folder(tmp_path):
    from diffusers import StableDiffusion3Pipeline

    folder = save_sd3(tmp_path / "model").path
    clip = folder / "text_encoder/model.safetensors"
    unit = load_file(clip) | {"text_projection.weight": torch.eye(64)}
    clip.unlink()
    save_file(unit, clip, {"format": "pt"})  # its loader of single files takes no other
    file = convert_model(folder, tmp_path / "model.safetensors").path
    pictures = []
    for pipeline in (
        StableDiffusion3Pipeline.from_pretrained(folder),
        StableDiffusion3Pipeline.from_single_file(str(file), config=str(folder)),
    ):
        pipeline.text_encoder_3.eval()  # which that loader forgets
        chance = torch.Generator().manual_seed(1)
        drawn = pipeline("a red star", num_inference_steps=2, width=32, height=32, generator=chance)
        pictures.append(np.asarray(drawn.images[0]).astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
    assert pictures[0].std() > 1


def test_a_bare_file_takes_its_tokenizers_from_a_folder(folders, tmp_path):
    folder = folders("3 medium")
    bare = written(folder, tmp_path / "bare.safetensors", bare=True)
    back = convert_model(bare, tmp_path / "back", ConversionChoices(config_from=folder))
    assert back.notes == ()
    for name in ("tokenizer/vocab.json", "tokenizer_2/merges.txt", "tokenizer_3/tokenizer.json"):
        assert (back.path / name).read_bytes() == (folder / name).read_bytes()
    assert json.loads((back.path / "tokenizer_2/tokenizer_config.json").read_text())["pad_token"] == "!"
    # A folder with CLIP's words alone lends those; one of other words lends nothing.
    clip = tmp_path / "clip"
    (clip / "tokenizer").mkdir(parents=True)
    for name in ("vocab.json", "merges.txt"):
        (clip / "tokenizer" / name).write_bytes((folder / "tokenizer" / name).read_bytes())
    back = convert_model(bare, tmp_path / "second", ConversionChoices(config_from=clip))
    assert (
        len(back.notes) == 1 and "holds no tokenizer_3" in back.notes[0] and "--config-from" in back.notes[0]
    )
    (clip / "tokenizer/vocab.json").write_text('{"a": 0}')
    with pytest.raises(UserError, match="no tokenizer for tokenizer, tokenizer_2, tokenizer_3 that fits"):
        convert_model(bare, tmp_path / "third", ConversionChoices(config_from=clip))
    assert not (tmp_path / "third").exists()


def test_another_vae_takes_the_place_of_the_models_own(folders, tmp_path):
    """In every direction, from a folder or a file of its own; one that scales latents differently is refused."""
    other = save_flux(tmp_path / "other", layers=1, seed=50).path
    alone = tmp_path / "ae.safetensors"
    given = load_file(written(other, tmp_path / "other.safetensors"))
    wanted = {name: one for name, one in given.items() if name.startswith("vae.")}
    save_file({name.removeprefix("vae."): one for name, one in wanted.items()}, alone)
    file = convert_model(folders("dev"), tmp_path / "own.safetensors").path
    for number, (source, vae) in enumerate(((folders("dev"), other), (file, other), (file, alone))):
        made = convert_model(source, tmp_path / f"{number}.safetensors", ConversionChoices(vae=vae))
        assert len(made.notes) == (vae == alone)
        found = load_file(made.path)
        same({name: one for name, one in found.items() if name.startswith("vae.")}, wanted)
        assert found.keys() == load_file(file).keys()
        back = convert_model(made.path, tmp_path / f"back{number}").path
        same(weights(other, "vae"), weights(back, "vae"))
    back = convert_model(file, tmp_path / "back", ConversionChoices(vae=alone))
    assert "does not say whose VAE it is" in back.notes[0]
    same(weights(other, "vae"), weights(back.path, "vae"))
    assert json.loads((back.path / "vae/config.json").read_text())["scaling_factor"] == 0.3611
    with pytest.raises(UserError, match=r"scales latents by 1\.5305, this model by 0\.3611"):
        convert_model(file, tmp_path / "no.safetensors", ConversionChoices(vae=folders("3 medium")))
    with pytest.raises(UserError, match=r"scales latents by 1\.5305, this model by 0\.3611"):
        sd3 = written(folders("3 medium"), tmp_path / "sd3.safetensors")
        convert_model(file, tmp_path / "no.safetensors", ConversionChoices(vae=sd3))


def test_the_folder_of_a_transformer_alone_is_a_model_too(folders, tmp_path):
    part = folders("schnell") / "transformer"
    file = convert(part, tmp_path / "alone.safetensors")
    assert (file.kind, file.family) == ("transformer", "flux")
    plain = written(folders("schnell"), tmp_path / "plain.safetensors", parts=["transformer"])
    same(load_file(plain), load_file(file.path))
    back = convert(file.path, tmp_path / "back")
    same(weights(folders("schnell"), "transformer"), weights(back.path, "transformer"))
    assert "vae, text_encoder, text_encoder_2" in back.notes[0]


def test_a_folder_is_written_anew_in_another_dtype(folders, tmp_path):
    folder = folders("3.5 large")
    half = convert(folder, tmp_path / "half", ConversionChoices(dtype="fp16"))
    assert (half.family, half.layout) == ("sd3", "diffusers")
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        same({name: one.half() for name, one in weights(folder, part).items()}, weights(half.path, part))
    for path in folder.rglob("*config.json"):
        assert json.loads((half.path / path.relative_to(folder)).read_text()) == json.loads(path.read_text())


def test_a_file_is_written_anew_in_another_dtype(folders, tmp_path):
    file = convert_model(folders("schnell"), tmp_path / "own.safetensors").path
    half = convert_model(file, tmp_path / "half.safetensors", ConversionChoices(dtype="bf16")).path
    same({name: one.bfloat16() for name, one in load_file(file).items()}, load_file(half))
    assert read_tensor_file(half).metadata[METADATA_KEY] == read_tensor_file(file).metadata[METADATA_KEY]
    # Packed numbers may be copied, never computed with.
    packed = load_file(file) | {"model.diffusion_model.scaled_fp8": torch.ones(1)}
    save_file(packed, tmp_path / "packed.safetensors")
    opened = read_tensor_file(tmp_path / "packed.safetensors")
    assert len(plan_repack(opened)[0]) == len(packed)
    with pytest.raises(UserError, match="packed or scaled"):
        plan_repack(opened, "fp16")


# ------------------------------------------------------------------ what is refused


def refused(tensors: dict[str, torch.Tensor], path: Path, metadata: dict | None = None) -> str:
    save_file(tensors, path, metadata)
    with pytest.raises(UserError) as told:
        plan_import(read_tensor_file(path))
    said, way_out = str(told.value).split("\n")
    return said + way_out


def test_strange_and_missing_tensors_are_named(folders, tmp_path):
    file = written(folders("dev"), tmp_path / "whole.safetensors")
    given, path = load_file(file), tmp_path / "x.safetensors"
    body = "model.diffusion_model."
    line = refused(given | {f"{body}double_blocks.0.extra.weight": torch.ones(1)}, path)
    assert "1 tensors that no Flux.1 transformer" in line and "double_blocks.0.extra.weight" in line
    line = refused({k: v for k, v in given.items() if k != f"{body}single_blocks.1.linear1.bias"}, path)
    assert "lacks 1 of" in line and "single_blocks.1.linear1.bias" in line
    line = refused({k: v for k, v in given.items() if not k.startswith("vae.decoder.mid.attn_1.q")}, path)
    assert "tensors of the vae, first decoder.mid.attn_1.q.weight" in line
    line = refused({k: v for k, v in given.items() if "layers.1.mlp.fc1" not in k}, path)
    assert "text_encoder" in line and "layers.1.mlp.fc1" in line
    assert "text_encoders.clip_g" in refused(
        given | {"text_encoders.clip_g.transformer.x": torch.ones(1)}, path
    )
    line = refused(given | {"img_in.weight": torch.ones(1)}, path)
    assert "twice" in line and "img_in.weight" in line
    wrong = given | {f"{body}double_blocks.1.img_attn.qkv.weight": torch.ones(100, 128)}
    assert "100 rows" in refused(wrong, path)
    wrong = given | {f"{body}final_layer.adaLN_modulation.1.bias": torch.ones(3)}
    assert "no halves" in refused(wrong, path)
    assert "img_in.weight of shape [64]" in refused(given | {f"{body}img_in.weight": torch.ones(64)}, path)


def test_other_models_and_packed_numbers_are_refused(folders, tmp_path):
    path = tmp_path / "x.safetensors"
    folder = folders("schnell")
    given = load_file(written(folder, tmp_path / "whole.safetensors"))
    assert "no transformer of SD3 or Flux" in refused({"model.x": torch.ones(1)}, path)
    assert "diffusers' names" in refused(weights(folder, "transformer"), path)
    marks = ("model.diffusion_model.scaled_fp8", "text_encoders.t5xxl.transformer.scaled_fp8",
             "model.diffusion_model.double_blocks.0.img_attn.qkv.scale_weight",
             "double_blocks.0.img_attn.qkv.weight.absmax")  # fmt: skip
    for mark in marks:
        line = refused(given | {mark: torch.ones(1)}, path)
        assert "packed or scaled" in line and mark in line and "plain fp8" in line


@pytest.mark.parametrize(
    "broken",
    [
        "{",
        "[]",
        "{}",
        '{"transformer/config.json": 5}',
        '{"transformer/config.json": {"_class_name": "UNet2DConditionModel"}}',
        '{"transformer/config.json": {"_class_name": ["FluxTransformer2DModel"]}}',
        '{"transformer/config.json": {"_class_name": "FluxTransformer2DModel", "num_layers": 1000000000}}',
        '{"transformer/config.json": {"num_layers": "two"}}',
        '{"vae/config.json": {"block_out_channels": 3}}',
        '{"vae/config.json": {"scaling_factor": []}}',
        '{"text_encoder/config.json": {"num_hidden_layers": null}}',
        '{"text_encoder_2/config.json": {"feed_forward_proj": 5}}',
        '{"model_index.json": []}',
    ],
)
def test_broken_configs_in_a_header_are_refused(folders, tmp_path, broken):
    file = written(folders("dev"), tmp_path / "whole.safetensors")
    given = read_tensor_file(file)
    if broken.count('"') > 2 and "UNet" not in broken:  # all the rest is sound
        own = json.loads(given.metadata[METADATA_KEY])
        ((name, wrong),) = json.loads(broken).items()
        broken = json.dumps(own | {name: own[name] | wrong if isinstance(wrong, dict) else wrong})
    line = refused(load_file(file), tmp_path / "x.safetensors", {METADATA_KEY: broken})
    assert "configs of" in line and "Flux.1" in line


def test_configs_of_the_other_family_are_refused(folders, tmp_path):
    other = read_tensor_file(written(folders("3 medium"), tmp_path / "sd3.safetensors")).metadata
    given = load_file(written(folders("dev"), tmp_path / "flux.safetensors"))
    assert "configs of" in refused(given, tmp_path / "x.safetensors", {METADATA_KEY: other[METADATA_KEY]})


def test_a_folder_that_is_not_whole_is_refused(folders, tmp_path):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(folders("schnell"), folder)
    (folder / "text_encoder_2/config.json").unlink()
    with pytest.raises(UserError, match=r"text_encoder_2/config\.json is missing") as told:
        plan_export(folder, None)
    assert "[null, null]" in told.value.fix
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"text_encoder_2": [None, None]}))
    tensors, _ = plan_export(folder, None)
    assert not any("t5xxl" in one.name for one in tensors)
    given = load_file(folder / "transformer/diffusion_pytorch_model.safetensors")
    path = folder / "transformer/diffusion_pytorch_model.safetensors"
    query = "transformer_blocks.0.attn.to_q.weight"
    save_file(given | {query: given[query].half()}, path)
    with pytest.raises(UserError, match="different number formats") as told:
        plan_export(folder, None)
    assert "--dtype" in told.value.fix
    assert plan_export(folder, "bf16")
    save_file({name: one for name, one in given.items() if name != query}, path)
    with pytest.raises(UserError, match=r"lacks 1 of .* transformer_blocks\.0\.attn\.to_q\.weight"):
        plan_export(folder, None)
    with pytest.raises(UserError, match="No part 'unet'"):
        plan_export(folder, None, parts=["unet"])
    (folder / "transformer/config.json").unlink()
    with pytest.raises(UserError, match="no Diffusers folder of SD3 or Flux"):
        plan_export(folder, None)


# ------------------------------------------------------------------ full size, without weights


def whole(family: str, config: dict):
    from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

    kind = FluxTransformer2DModel if family == "flux" else SD3Transformer2DModel
    return kind(**{key: value for key, value in config.items() if not key.startswith("_")})


@pytest.mark.parametrize("model", BUNDLED)
def test_the_tables_hold_every_tensor_of_the_published_models(model):
    family = model.partition("-")[0].removesuffix("5")
    stock = bundled_configs(model)
    with torch.device("meta"):
        parts = {
            name.partition("/")[0]: whole_part(family, name.partition("/")[0], json.loads(text))
            for name, text in stock.items()
            if name.endswith("/config.json")
        }
    assert len(parts) == (5 if family == "sd3" else 4)
    for part, module in parts.items():
        wanted = {own_name(family, part, name) for name in module.state_dict()} - {TIED}
        table = part_table(family, part, stock)
        assert {one for row in table.rows.values() for one in row} == wanted, part
        assert set(table.swapped) <= set(table.rows)


def whole_part(family: str, part: str, config: dict):
    import transformers
    from diffusers import AutoencoderKL

    if part == "transformer":
        return whole(family, config)
    if part == "vae":
        return AutoencoderKL.from_config(config)
    kind = getattr(transformers, config["architectures"][0])
    return kind(kind.config_class(**config))


@pytest.mark.parametrize("model", BUNDLED)
def test_a_published_model_saved_anew_carries_no_configs(tmp_path, model):
    """What today's diffusers writes beside the published weights means what is bundled."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
    from transformers import CLIPTextConfig, T5Config

    stock = bundled_configs(model)
    parsed = {name: json.loads(text) for name, text in stock.items()}
    family = model.partition("-")[0].removesuffix("5")
    with torch.device("meta"):
        whole(family, parsed["transformer/config.json"]).save_config(tmp_path / "transformer")
        AutoencoderKL.from_config(parsed["vae/config.json"]).save_config(tmp_path / "vae")
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(parsed["scheduler/scheduler_config.json"])
    scheduler.save_config(tmp_path / "scheduler")
    parts = ["transformer", "vae"]
    for name, config in parsed.items():
        if name.startswith("text_encoder"):
            kind = T5Config if config["model_type"] == "t5" else CLIPTextConfig
            kind(**config).save_pretrained(tmp_path / name.partition("/")[0])
            parts.append(name.partition("/")[0])
    assert carried_configs(folder_configs(tmp_path), parts) == {}
    (tmp_path / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler.config | {"shift": 5.0}))
    carried = json.loads(carried_configs(folder_configs(tmp_path), parts)[METADATA_KEY])
    assert carried["scheduler/scheduler_config.json"]["shift"] == 5.0
    assert not any(name.startswith("tokenizer") for name in carried)


PLANNING = """
import sys
from pathlib import Path
from fastsd_lib.core.tensor_file import read_tensor_file
from fastsd_lib.formats.transformer_files import plan_import
configs, parts = plan_import(read_tensor_file(Path(sys.argv[1])))
heavy = [name for name in ("torch", "diffusers", "numpy", "safetensors") if name in sys.modules]
peak = next(line.split()[1] for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))
print(len(parts["transformer"]), sum(one.size_bytes for one in parts["transformer"]), peak, *heavy)
for one in parts["transformer"]:
    print(one.name, *one.shape)
"""


def test_planning_24_gigabytes_takes_64_megabytes_and_no_torch(tmp_path):
    """A file of full-size Flux dev that is all hole: its header alone is there."""
    config = json.loads(bundled_configs("flux-dev")["transformer/config.json"])
    with torch.device("meta"):
        shapes = {name: tuple(one.shape) for name, one in whole("flux", config).state_dict().items()}
    rows = flux_table(config).rows
    tensors = [
        NewTensor(theirs, "BF16", (sum(shapes[one][0] for one in ours), *shapes[ours[0]][1:]), lambda: ())
        for theirs, ours in rows.items()
    ]
    header = header_bytes(tensors, {})
    path = tmp_path / "flux1-dev.safetensors"
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + sum(one.size_bytes for one in tensors))
    assert path.stat().st_size > 23.8e9
    try:
        told = subprocess.run(
            [sys.executable, "-c", PLANNING, str(path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout.splitlines()
    finally:
        path.unlink()
    count, size, peak_kib, *heavy = told[0].split()
    assert heavy == []
    assert int(peak_kib) < 64 * 1000
    assert int(count) == len(shapes) and int(size) == 23_802_816_640  # as the published folder counts
    assert {line.split()[0]: tuple(map(int, line.split()[1:])) for line in told[1:]} == shapes


CONVERTING = """
import sys
from pathlib import Path
from fastsd_lib.workflows.converting import convert
source, target = map(Path, sys.argv[1:])
convert(source, target / "model.safetensors")
convert(target / "model.safetensors", target / "model")
heavy = [name for name in ("torch", "diffusers", "numpy", "safetensors") if name in sys.modules]
peak = next(line.split()[1] for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))
print(peak, *heavy)
"""


def test_converting_there_and_back_loads_nothing_heavy(folders, tmp_path):
    command = [sys.executable, "-c", CONVERTING, str(folders("3.5 medium")), str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()
    assert int(told[0]) < 64 * 1000 and told[1:] == []


def test_a_header_of_many_tensors_is_answered_soon(tmp_path):
    names = [f"double_blocks.0.img_attn.x{n}" for n in range(30_000)]
    header = {name: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for name in names}
    text = json.dumps(header).encode()
    path = tmp_path / "many.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(UserError, match=r"holds no img_in\.weight"):
        plan_import(read_tensor_file(path))
