"""Enlarging: networks read under every name their makers gave, tiles without seams, wrong files refused."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.engine import load_engine
from fastsd_lib.generation.library import LibraryFolders
from fastsd_lib.generation.request import GenerationRequest, Hires
from fastsd_lib.generation.resources import Library
from fastsd_lib.generation.upscale import BUILT_IN, blended, enlarge, find_upscaler, upscale, upscalers
from fastsd_lib.generation.upscale_nets import CompactNet, RRDBNet, load_net, named_alike
from fastsd_lib.generation.vae import decode, encode


def picture(width: int = 40, height: int = 28, seed: int = 0) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)


def rrdb(doublings: int = 2, unshuffle: int = 1, blocks: int = 1) -> RRDBNet:
    torch.manual_seed(1)
    net = RRDBNet(8, 4, blocks, doublings, unshuffle).eval().requires_grad_(False)
    net.last.bias.fill_(0.5)  # in the middle of what can be seen
    return net


def compact(scale: int = 4) -> CompactNet:
    torch.manual_seed(2)
    return CompactNet(8, 3, scale).eval().requires_grad_(False)


def real_esrgan_names(net: RRDBNet) -> dict[str, torch.Tensor]:
    around = {
        "first": "conv_first", "trunk": "conv_body", "up.0": "conv_up1", "up.1": "conv_up2", "large": "conv_hr",
        "last": "conv_last",
    }  # fmt: skip
    return _renamed(net, around, "body.{}.rdb{}.conv{}")


def esrgan_names(net: RRDBNet) -> dict[str, torch.Tensor]:
    around = {
        "first": "conv_first", "trunk": "trunk_conv", "up.0": "upconv1", "up.1": "upconv2", "large": "HRconv",
        "last": "conv_last",
    }  # fmt: skip
    return _renamed(net, around, "RRDB_trunk.{}.RDB{}.conv{}")


def old_names(net: RRDBNet) -> dict[str, torch.Tensor]:
    """As a chain of layers is numbered in which every doubling is [enlarge, convolve, bend]."""
    around = {"first": "model.0", "trunk": f"model.1.sub.{len(net.blocks)}"}
    around |= {f"up.{number}": f"model.{3 + 3 * number}" for number in range(len(net.up))}
    after = 2 + 3 * len(net.up)
    around |= {"large": f"model.{after}", "last": f"model.{after + 2}"}
    return _renamed(net, around, "model.1.sub.{}.RDB{}.conv{}.0")


def _renamed(net: RRDBNet, around: dict[str, str], block: str) -> dict[str, torch.Tensor]:
    named = {}
    for name, tensor in net.state_dict().items():
        layer, _, kind = name.rpartition(".")
        if layer.startswith("blocks."):
            _, number, dense, _, conv = layer.split(".")
            theirs = block.format(number, int(dense) + 1, int(conv) + 1)
        else:
            theirs = around[layer]
        named[f"{theirs}.{kind}"] = tensor.clone()
    return named


@pytest.mark.parametrize("names", [real_esrgan_names, esrgan_names, old_names])
@pytest.mark.parametrize("ending", ["safetensors", "pth", "wrapped.pth"])
def test_a_network_is_read_under_each_set_of_names(names, ending, tmp_path):
    net = rrdb(blocks=2)
    path = tmp_path / f"net.{ending}"
    if ending == "safetensors":
        save_file(names(net), path)
    else:
        torch.save({"params_ema": names(net)} if "wrapped" in ending else names(net), path)
    loaded = load_net(path)
    pixels = torch.rand(1, 3, 9, 7)
    assert loaded.scale == 4 and loaded(pixels).shape == (1, 3, 36, 28)
    assert torch.equal(loaded(pixels), net(pixels))


@pytest.mark.parametrize("doublings, scale", [(0, 1), (1, 2), (2, 4), (3, 8)])
def test_the_oldest_names_say_the_scale_by_how_far_they_count(doublings, scale, tmp_path):
    net = rrdb(doublings)
    save_file(old_names(net), tmp_path / "old.safetensors")
    loaded = load_net(tmp_path / "old.safetensors")
    assert loaded.scale == scale
    pixels = torch.rand(1, 3, 8, 8)
    assert torch.equal(loaded(pixels), net(pixels))


@pytest.mark.parametrize("unshuffle, scale", [(2, 2), (4, 1)])
def test_packed_pixels_make_a_smaller_scale_and_odd_sizes_fit(unshuffle, scale, tmp_path):
    save_file(real_esrgan_names(rrdb(unshuffle=unshuffle)), tmp_path / "packed.safetensors")
    loaded = load_net(tmp_path / "packed.safetensors")
    assert loaded.scale == scale
    assert loaded(torch.rand(1, 3, 9, 7)).shape == (1, 3, 9 * scale, 7 * scale)


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_a_compact_network_that_adds_nothing_repeats_each_pixel(scale, tmp_path):
    net = compact(scale)
    net.body[-1].weight.zero_(), net.body[-1].bias.zero_()
    save_file(net.state_dict(), tmp_path / "compact.safetensors")
    loaded = load_net(tmp_path / "compact.safetensors")
    assert loaded.scale == scale
    wide = enlarge(loaded, picture())
    repeated = np.asarray(picture()).repeat(scale, 0).repeat(scale, 1)
    assert np.array_equal(np.asarray(wide), repeated)


def test_the_dense_blocks_are_the_papers_formula():
    """By hand, from the text: five convolutions on all before them, residuals of a fifth at both depths."""
    net, pixels = rrdb(doublings=0), torch.rand(1, 3, 6, 5)

    def dense(block, x):
        seen = [x]
        for conv in block.convs[:-1]:
            seen.append(F.leaky_relu(F.conv2d(torch.cat(seen, 1), conv.weight, conv.bias, padding=1), 0.2))
        return x + block.convs[-1](torch.cat(seen, 1)) / 5

    first = net.first(pixels)
    inner = dense(net.blocks[0][2], dense(net.blocks[0][1], dense(net.blocks[0][0], first)))
    x = first + net.trunk(first + inner / 5)
    expected = net.last(F.leaky_relu(net.large(x), 0.2))
    assert torch.allclose(net(pixels), expected, atol=1e-6)


@pytest.mark.parametrize("net", [rrdb(), rrdb(unshuffle=2), compact(3)], ids=["rrdb", "packed", "compact"])
def test_tiles_are_the_whole_picture(net):
    large = picture(100, 76)
    whole = np.asarray(enlarge(net, large, tile_px=512), dtype=int)
    assert whole.std() > 1  # something is to be seen
    tiled = np.asarray(enlarge(net, large, tile_px=24, context_px=48), dtype=int)
    assert tiled.shape == (76 * net.scale, 100 * net.scale, 3)
    assert abs(tiled - whole).max() <= 1
    torn = np.asarray(enlarge(net, large, tile_px=24, context_px=0), dtype=int)
    assert abs(torn - whole).max() > 1  # the context is what does it


def test_progress_is_told_and_can_end_the_work():
    shares: list[float] = []
    enlarge(compact(2), picture(100, 76), tile_px=48, told=shares.append)
    assert shares[0] == 0 and shares == sorted(shares) and len(shares) == 6

    def leave(share):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        enlarge(compact(2), picture(), told=leave)


# ------------------------------------------------------------------ by name


@pytest.fixture
def folder(tmp_path) -> Path:
    places = tmp_path / "ESRGAN"
    places.mkdir()
    save_file(compact(2).state_dict(), places / "Twice.safetensors")
    torch.save({"params": real_esrgan_names(rrdb())}, places / "RealESRGAN_x4plus.pth")
    (places / "readme.txt").write_text("not one")
    return places


def test_the_library_lists_the_built_in_ones_and_the_files(folder):
    known = upscalers([folder])
    assert list(known) == ["None", "Lanczos", "Nearest", "RealESRGAN_x4plus", "Twice"]
    assert (known["Twice"].scale, known["RealESRGAN_x4plus"].scale, known["Lanczos"].scale) == (2, 4, 4)


def test_a_name_is_found_in_any_case_and_an_unknown_one_names_its_neighbours(folder):
    assert find_upscaler("realesrgan_x4plus", [folder]).name == "RealESRGAN_x4plus"
    assert find_upscaler("Twice.safetensors", [folder]).name == "Twice"
    assert find_upscaler(None, [folder]) is find_upscaler("none", [folder]) is BUILT_IN["None"]
    with pytest.raises(UserError, match="no upscaler 'RealESRGAN x4'") as error:
        find_upscaler("RealESRGAN x4", [folder])
    assert error.value.fix == "nearest: RealESRGAN_x4plus."


def test_sizes_are_exact_whatever_the_network_gives(folder):
    known, small = upscalers([folder]), picture(40, 28)
    for name, size in (("Twice", (80, 56)), ("Twice", (100, 71)), ("Twice", (320, 224)), ("Twice", (20, 14)),
                       ("Lanczos", (61, 43)), ("RealESRGAN_x4plus", (123, 86))):  # fmt: skip
        assert upscale(small, known[name], size).size == size
    assert upscale(small, known["None"], (80, 56)) is small
    twice = upscale(small, known["Twice"], (80, 56))
    assert twice.tobytes() == enlarge(compact(2), small).tobytes()  # no resampling after it
    nearest = upscale(small, known["Nearest"], (80, 56))
    assert np.array_equal(np.asarray(nearest), np.asarray(small).repeat(2, 0).repeat(2, 1))


def test_a_size_nobody_can_hold_is_refused():
    with pytest.raises(UserError, match="would have 100000 x 100000 px") as error:
        upscale(picture(), BUILT_IN["Lanczos"], (100_000, 100_000))
    assert "smaller scale: at most 67 million pixels" in error.value.fix


def test_two_pictures_are_blended_by_their_share():
    black, white = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), "white")
    assert blended(black, white, 0.25).getpixel((0, 0)) == (63, 63, 63)
    assert blended(black, white, 0) is black and blended(black, white, 1).getpixel((1, 1)) == (255, 255, 255)


def test_gray_pictures_are_taken_and_transparent_ones_stay_so(folder):
    twice = upscalers([folder])["Twice"]
    for mode, then in (("L", "RGB"), ("P", "RGB"), ("RGBA", "RGBA"), ("LA", "RGBA")):
        larger = upscale(picture(8, 8).convert(mode), twice, (16, 16))
        assert (larger.size, larger.mode) == ((16, 16), then)
    half = picture(8, 8)
    half.putalpha(128)
    assert upscale(half, twice, (16, 16)).getchannel("A").getextrema() == (128, 128)


# ------------------------------------------------------------------ wrong files


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("it-ran"),))


def test_a_pickle_that_would_run_something_is_refused_and_nothing_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"params": real_esrgan_names(rrdb()), "more": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pth", "plain.pth"):
        with pytest.raises(UserError, match="not a whole file of plain weights") as error:
            load_net(tmp_path / name)
        assert "safetensors" in error.value.fix and "weights_only" not in str(error.value)
    assert not (tmp_path / "it-ran").exists()


def test_other_and_damaged_files_are_refused(tmp_path):
    names = real_esrgan_names(rrdb())
    wrong = {
        "lora": {"lora_unet.down.weight": torch.zeros(2, 2)},
        "missing": {name: one for name, one in names.items() if name != "conv_hr.weight"},
        "more": {**names, "body.0.noise.weight": torch.zeros(1)},
        "shape": {**names, "conv_last.weight": torch.zeros(5, 8, 3, 3)},
        "gray": {**names, "conv_first.weight": torch.zeros(8, 1, 3, 3)},
        "compact": {**compact().state_dict(), "body.8.weight": torch.zeros(2, 8, 3, 3)},
        "empty": {"x": torch.zeros(1)},
    }
    for name, weights in wrong.items():
        save_file(weights, tmp_path / f"{name}.safetensors")
        with pytest.raises(UserError, match=f"{name}.safetensors is no ESRGAN") as error:
            load_net(tmp_path / f"{name}.safetensors")
        assert "RealESRGAN_x4plus.pth" in error.value.fix
    numberless = {**names, "conv_last.bias": torch.full((3,), float("nan"))}
    save_file(numberless, tmp_path / "nan.safetensors")
    with pytest.raises(UserError, match="no numbers"):
        load_net(tmp_path / "nan.safetensors")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match=r"list\.pth is no ESRGAN"):
        load_net(tmp_path / "list.pth")
    (tmp_path / "page.safetensors").write_text("<!doctype html>")
    with pytest.raises(UserError, match="is a web page"):
        load_net(tmp_path / "page.safetensors")
    with pytest.raises(KeyError):
        named_alike({"conv_first.weight": torch.zeros(1), "somewhere.weight": torch.zeros(1)})


def test_a_file_that_changes_is_read_again(folder):
    path = folder / "Twice.safetensors"
    assert load_net(path).scale == 2 and load_net(path) is load_net(path)
    save_file(compact(3).state_dict(), path)
    assert load_net(path).scale == 3


# ------------------------------------------------------------------ as the way to a second pass


def test_a_second_pass_is_enlarged_by_a_network_of_the_library(folder, tiny_pipeline):
    engine = load_engine(tiny_pipeline, device="cpu")
    engine.library = Library.of(LibraryFolders(upscalers=(folder,)))
    request = GenerationRequest("a red star", inference_steps=2, guidance_scale=1)
    (small,) = engine.generate(request)
    kept = Hires(
        upscaler="twice", strength=0
    )  # nothing drawn over: the larger picture itself, through the VAE
    (large,) = engine.generate(replace(request, hires=kept))
    assert large.image.size == (128, 128)
    expected = [upscale(small.image, find_upscaler("Twice", [folder]), (128, 128))]
    latents = encode(engine.parts, expected, lambda warning: None)
    assert large.image.tobytes() == decode(engine.parts, latents, lambda warning: None)[0].tobytes()
    assert large.record["extra_parameters"]["Hires upscaler"] == "twice"


def test_a_second_pass_refuses_a_name_that_is_not_there_and_a_file_that_is_no_network(folder, tiny_pipeline):
    engine = load_engine(tiny_pipeline, device="cpu")
    engine.library = Library.of(LibraryFolders(upscalers=(folder,)))
    save_file({"x": torch.zeros(1)}, folder / "Lora.safetensors")
    request = GenerationRequest("a red star", inference_steps=2)
    with pytest.raises(UserError, match=r"hires\.upscaler is 'Thrice'") as error:
        engine.generate(replace(request, hires=Hires(upscaler="Thrice")))
    assert "latent, " in error.value.fix and "Twice." in error.value.fix
    with pytest.raises(UserError, match=r"Lora\.safetensors is no ESRGAN"):
        engine.generate(replace(request, hires=Hires(upscaler="Lora")))
