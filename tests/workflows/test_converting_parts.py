"""`convert` for what is no whole model: LoRA, ControlNet, T2I-Adapter, VAE, embedding; and from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastsd_lib.cli import main
from fastsd_lib.core.errors import UserError
from fastsd_lib.formats.conversion import ConversionChoices
from fastsd_lib.workflows.converting import convert

KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    tensors = {f"{KEY}.lora_down.weight": torch.randn(4, 768), f"{KEY}.lora_up.weight": torch.randn(320, 4)}
    save_file(tensors | {f"{KEY}.alpha": torch.tensor(2.0)}, tmp_path / "lora.safetensors")
    return tmp_path / "lora.safetensors"


def test_a_lora_changes_its_names_by_command(
    lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(lora), str(out), "--naming", "peft", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["kind"], said["family"]) == ("lora", "sd1")
    assert said["notes"][0].startswith("kohya -> peft")
    assert all(name.startswith("unet.down_blocks.0.") for name in load_file(out))
    # Without a word about it: the other naming, back to the same file.
    made = convert(out, tmp_path / "back.safetensors")
    found, given = load_file(made.path), load_file(lora)
    assert found.keys() == given.keys() and all(torch.equal(found[name], given[name]) for name in given)


def test_half_a_lora_is_refused_by_the_tensor_and_leaves_nothing(lora: Path, tmp_path: Path) -> None:
    save_file({n: v for n, v in load_file(lora).items() if "lora_up" not in n}, tmp_path / "half.safetensors")
    with pytest.raises(UserError, match=rf"{KEY}\.lora_down\.weight has no up matrix beside it"):
        main(["convert", str(tmp_path / "half.safetensors"), str(tmp_path / "out.safetensors")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half.safetensors", "lora.safetensors"]


def test_parts_go_to_folders_and_back(tmp_path: Path) -> None:
    from diffusers.models.adapter import T2IAdapter
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.controlnets.controlnet import ControlNetModel

    makers = {
        "controlnet": ControlNetModel(
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            layers_per_block=1,
            cross_attention_dim=768,
        ),
        "t2i-adapter": T2IAdapter(channels=[8, 16], num_res_blocks=2),
        "vae": AutoencoderKL(block_out_channels=(32,)),
    }
    for kind, module in makers.items():
        module.save_pretrained(tmp_path / kind)
        file = convert(tmp_path / kind, tmp_path / f"{kind}.safetensors")
        assert (file.kind, file.layout) == (kind, "single_file")
        back = convert(file.path, tmp_path / f"{kind} again")
        assert (back.kind, back.layout) == (kind, "diffusers")
        held = load_file(back.path / "diffusion_pytorch_model.safetensors")
        given = dict(module.state_dict())
        assert held.keys() == given.keys() and all(torch.equal(held[name], given[name]) for name in given)


def test_an_embedding_leaves_its_pickle(tmp_path: Path) -> None:
    vectors = torch.randn(2, 768)
    torch.save({"string_to_param": {"*": vectors}, "name": "zwx"}, tmp_path / "zwx.pt")
    made = convert(tmp_path / "zwx.pt", tmp_path / "zwx.safetensors")
    assert (made.kind, made.family) == ("embedding", "sd1")
    assert torch.equal(load_file(made.path)["emb_params"], vectors)
    with pytest.raises(UserError, match="keeps its numbers"):
        convert(tmp_path / "zwx.pt", tmp_path / "half.safetensors", ConversionChoices(dtype="fp16"))


def test_a_dtype_alone_leaves_the_names(lora: Path, tmp_path: Path) -> None:
    made = convert(lora, tmp_path / "half.safetensors", ConversionChoices(dtype="fp16"))
    found, given = load_file(made.path), load_file(lora)
    assert found.keys() == given.keys()
    for name, one in given.items():
        wanted = one if name.endswith(".alpha") else one.half()
        assert found[name].dtype == wanted.dtype and torch.equal(found[name], wanted)
