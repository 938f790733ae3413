"""SD3 and Flux through the doors that users open: convert, the engine, diffusers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_transformers import save_flux, save_sd3
from transformer_folders import same, weights, written

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.tensor_file import read_tensor_file
from fastsd_lib.formats.configs import METADATA_KEY
from fastsd_lib.formats.conversion import ConversionChoices, convert_model
from fastsd_lib.formats.transformer_files import plan_repack
from fastsd_lib.workflows.converting import convert


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
