"""ControlNets and T2I-Adapters between their inventors' names and diffusers'. Witness: diffusers' own loaders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fastsd_lib.core.errors import UserError
from fastsd_lib.formats.control_convert import convert_control

Tensors = dict[str, torch.Tensor]
XL = {
    "block_out_channels": (64, 128, 128),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 1),
    "cross_attention_dim": 96,
    "attention_head_dim": (1, 2, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 1600,
    "conditioning_embedding_out_channels": (8, 16, 24, 32),
}
SD1 = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 64,
    "attention_head_dim": 8,
}


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ControlNet as diffusers saves it; none of its numbers is zero."""
    from diffusers.models.controlnets.controlnet import ControlNetModel

    torch.manual_seed(1)
    net = ControlNetModel(**(SD1 if request.param == "sd1" else XL))
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(torch.randn(weight.shape) * 0.1)
    place = tmp_path_factory.mktemp("control") / request.param
    net.save_pretrained(place)
    return place


def weights(folder: Path) -> Tensors:
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def test_folder_to_file_is_what_diffusers_reads_as_the_original(folder: Path, tmp_path: Path) -> None:
    from diffusers.models.controlnets.controlnet import ControlNetModel

    file = convert_control(folder, tmp_path / "net.safetensors", "original")
    names = load_file(file).keys()
    assert {"control_model.zero_convs.0.0.weight", "control_model.middle_block_out.0.bias"} <= names
    assert "control_model.input_hint_block.14.weight" in names
    if folder.name == "sdxl":
        # diffusers' loader of single files forgets the layers for size ids; all others are asked for.
        from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

        theirs = convert_controlnet_checkpoint(
            load_file(file), json.loads((folder / "config.json").read_text())
        )
        ours = {name: one for name, one in weights(folder).items() if not name.startswith("add_embedding.")}
        assert same(theirs, ours)
        return
    loaded = ControlNetModel.from_single_file(str(file), config=str(folder), local_files_only=True)
    assert same(dict(loaded.state_dict()), weights(folder))


def test_there_and_back_is_bit_identical_and_loads(folder: Path, tmp_path: Path) -> None:
    from diffusers.models.controlnets.controlnet import ControlNetModel

    file = convert_control(folder, tmp_path / "net.safetensors", "original")
    again = convert_control(file, tmp_path / "again", "diffusers")
    assert same(weights(again), weights(folder))
    loaded, said = ControlNetModel.from_pretrained(again, output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"]
    wanted = ControlNetModel.from_pretrained(folder).config
    for name in ("block_out_channels", "layers_per_block", "conditioning_embedding_out_channels",
                 "cross_attention_dim", "addition_embed_type", "attention_head_dim", "down_block_types"):  # fmt: skip
        assert list(map(str, [loaded.config[name]])) == list(map(str, [wanted[name]])), name


@pytest.mark.parametrize("prefix", ["control_model.", ""])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_strangers_file_needs_no_config(folder: Path, tmp_path: Path, prefix: str, suffix: str) -> None:
    """Bare names and prefixed ones, pickles and not: the way back ends with the same tensors."""
    full = load_file(convert_control(folder, tmp_path / "net.safetensors", "original"))
    stranger = {prefix + name.removeprefix("control_model."): one for name, one in full.items()}
    source = tmp_path / f"stranger{suffix}"
    torch.save(stranger, source) if suffix == ".pth" else save_file(stranger, source)
    made = convert_control(source, tmp_path / "made", "diffusers")
    assert same(weights(made), weights(folder))
    config = json.loads((made / "config.json").read_text())
    given = json.loads((folder / "config.json").read_text())
    for name in ("block_out_channels", "layers_per_block", "down_block_types", "cross_attention_dim",
                 "use_linear_projection", "conditioning_embedding_out_channels", "in_channels",
                 "projection_class_embeddings_input_dim"):  # fmt: skip
        assert config.get(name, None) == given[name], name
    if folder.name == "sdxl":
        assert config["transformer_layers_per_block"] == given["transformer_layers_per_block"]
    back = convert_control(made, tmp_path / "back.safetensors", "original")
    assert same(load_file(back), stranger)


def test_dtype_and_naming_within_one_file(folder: Path, tmp_path: Path) -> None:
    file = convert_control(folder, tmp_path / "half.safetensors", "diffusers", dtype="fp16")
    assert same(load_file(file), {name: one.half() for name, one in weights(folder).items()})
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata()["modelspec.hash_sha256"].startswith("0x")


def test_hashes_of_the_old_file_are_not_carried_over(folder: Path, tmp_path: Path) -> None:
    said = {"sshs_model_hash": "of the old file", "sshs_legacy_hash": "old too", "author": "Ann"}
    source = tmp_path / "theirs.safetensors"
    save_file(load_file(convert_control(folder, tmp_path / "net.safetensors", "original")), source, said)
    file = convert_control(source, tmp_path / "half.safetensors", "original", dtype="fp16")
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata()["author"] == "Ann"
        assert not {"sshs_model_hash", "sshs_legacy_hash"} & opened.metadata().keys()


def adapter(kind: str) -> torch.nn.Module:
    from diffusers.models.adapter import T2IAdapter

    torch.manual_seed(2)
    channels = [8, 16, 32] if kind == "light_adapter" else [8, 16, 32, 32]
    return T2IAdapter(
        in_channels=1 if kind == "full_adapter" else 3,
        channels=channels,
        num_res_blocks=4 if kind == "light_adapter" else 2,
        downscale_factor=16 if kind == "full_adapter_xl" else 8,
        adapter_type=kind,
    )


@pytest.mark.parametrize("kind", ["full_adapter", "full_adapter_xl", "light_adapter"])
def test_adapters_go_both_ways(tmp_path: Path, kind: str) -> None:
    from diffusers.models.adapter import T2IAdapter

    adapter(kind).save_pretrained(tmp_path / "folder")
    file = convert_control(tmp_path / "folder", tmp_path / "adapter.safetensors", "original")
    names = load_file(file).keys()
    if kind == "light_adapter":
        assert {"body.0.in_conv.weight", "body.3.body.3.block2.bias", "body.3.out_conv.weight"} <= names
    else:
        # TencentARC counts residual blocks in a row: the second level's in_conv stands in body.2.
        assert {"conv_in.weight", "body.2.in_conv.weight", "body.7.block2.bias"} <= names
    torch.save(load_file(file), tmp_path / "t2i.pth")
    made = convert_control(tmp_path / "t2i.pth", tmp_path / "made", "diffusers")
    assert same(weights(made), weights(tmp_path / "folder"))
    loaded, said = T2IAdapter.from_pretrained(made, output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"]
    given = adapter(kind).config
    assert {name: loaded.config[name] for name in given if not name.startswith("_")} == {
        name: value for name, value in given.items() if not name.startswith("_")
    }


# ------------------------------------------------------------------ bad input


def broken(folder: Path, tmp_path: Path, change: dict[str, torch.Tensor | None]) -> Path:
    tensors = load_file(convert_control(folder, tmp_path / "whole.safetensors", "original"))
    (tmp_path / "whole.safetensors").unlink()
    for name, value in change.items():
        if value is None:
            tensors = {key: one for key, one in tensors.items() if not key.startswith(name)}
        else:
            tensors[name] = value
    save_file(tensors, tmp_path / "broken.safetensors")
    return tmp_path / "broken.safetensors"


BROKEN = {
    "a stranger": ({"control_model.warp.weight": torch.zeros(2)}, r"holds control_model\.warp\.weight"),
    "a part is missing": ({"control_model.zero_convs.1.": None}, r"lacks 1 modules .*zero_convs\.1\.0"),
    "first layer": ({"control_model.input_blocks.0.": None}, r"damaged ControlNet"),
    "union": ({"task_embedding": torch.zeros(2)}, r"ControlNet Union, which has one naming only"),
    "flux": ({"controlnet_x_embedder.weight": torch.zeros(2)}, r"transformer \(Flux\), which has one naming"),
    "control-lora": ({"lora_controlnet": torch.zeros(0)}, r"Control-LoRA, which has one naming"),
    "flat": (
        {"control_model.input_hint_block.0.weight": torch.zeros(9)},
        r"input_hint_block\.0\.weight has the shape \[9\]",
    ),
    "difference": ({"difference": torch.zeros(0)}, r"only the difference"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_whole_controlnet_is_refused_by_name(folder: Path, tmp_path: Path, case: str) -> None:
    change, line = BROKEN[case]
    source = broken(folder, tmp_path, change)
    with pytest.raises(UserError, match=line) as refused:
        convert_control(source, tmp_path / "out", "diffusers")
    assert refused.value.fix
    assert [path.name for path in tmp_path.iterdir()] == ["broken.safetensors"]


def test_impossible_targets_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="original ones") as refused:
        convert_control(folder, tmp_path / "out", "original")
    assert "out.safetensors" in refused.value.fix
    with pytest.raises(UserError, match="pickle"):
        convert_control(folder, tmp_path / "out.pth", "original")
    with pytest.raises(UserError, match="no names of the kind 'peft'"):
        convert_control(folder, tmp_path / "out.safetensors", "peft")  # type: ignore[arg-type]
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="is there already"):
        convert_control(folder, tmp_path / "there", "diffusers")
    save_file({"model.1.sub.0.RDB1.conv1.0.weight": torch.zeros(2)}, tmp_path / "esrgan.safetensors")
    with pytest.raises(UserError, match="no layer for a control picture"):
        convert_control(tmp_path / "esrgan.safetensors", tmp_path / "out", "diffusers")


def test_an_adapter_of_another_make_is_refused_by_the_tensor(tmp_path: Path) -> None:
    adapter("full_adapter").save_pretrained(tmp_path / "folder")
    file = convert_control(tmp_path / "folder", tmp_path / "adapter.safetensors", "original")
    save_file(load_file(file) | {"body.0.skep.weight": torch.zeros(2)}, tmp_path / "odd.safetensors")
    with pytest.raises(UserError, match=r"no T2I-Adapter known here: it holds body\.0\.skep\.weight"):
        convert_control(tmp_path / "odd.safetensors", tmp_path / "out", "diffusers")
