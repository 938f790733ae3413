"""The cheaper U-Net call answers as the plain module does, whatever happens to the weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.formats.parts import Parts, load_parts
from fastsd_lib.generation.engine import draw, load_engine
from fastsd_lib.generation.fast_unet import FastUnet, prepare
from fastsd_lib.generation.request import GenerationRequest
from fastsd_lib.generation.tiling import seamless
from fastsd_lib.models.registry import base_model

CPU, ROUNDING = torch.device("cpu"), 2e-5


@pytest.fixture(params=["tiny_pipeline", "narrow_sd15"])
def parts(request) -> Parts:
    return load_parts(request.getfixturevalue(request.param), CPU, torch.float32)


def asked(parts: Parts, rows: int, seed: int = 0, tokens: int = 77) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(seed)
    side = parts.unet.config.sample_size
    return {
        "x": torch.randn(rows, 4, side, side, generator=noise),
        "times": torch.rand(rows, generator=noise) * 999,
        "encoder_hidden_states": torch.randn(rows, tokens, 128, generator=noise),
    }


def both(parts: Parts, fast: FastUnet, asked: dict, **more) -> tuple[torch.Tensor, torch.Tensor]:
    given = dict(asked)
    x, times = given.pop("x"), given.pop("times")
    with torch.inference_mode():
        return fast(x, times, **given, **more, return_dict=False)[0], parts.unet(
            x, times, **given, **more, return_dict=False
        )[0]


def same(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    ours, plain = pair
    assert plain.std() > 0.01
    torch.testing.assert_close(ours, plain, atol=ROUNDING * float(plain.abs().max()), rtol=0)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_number_of_rows_and_threads_gets_the_answer_of_the_plain_module(parts, threads):
    before, fast = torch.get_num_threads(), FastUnet(parts, threads)
    assert fast._twin is not None, "this torch packs"
    for rows in (1, 2, 5):
        question = asked(parts, rows, seed=rows)
        same(both(parts, fast, question))
        same(both(parts, fast, question | {"x": question["x"] + 1}))  # the text is known by now
        same(both(parts, fast, question | {"encoder_hidden_states": question["encoder_hidden_states"] + 1}))
    assert torch.get_num_threads() == before


def test_sizes_that_take_turns_and_odd_ones_are_answered(parts):
    fast = FastUnet(parts, 1)
    for height, width in ((16, 16), (8, 24), (16, 16), (32, 8)):
        question = asked(parts, 2) | {"x": torch.randn(2, 4, height, width)}
        same(both(parts, fast, question))


def test_weights_that_change_in_any_way_are_the_ones_in_force(parts):
    fast = FastUnet(parts, 2)
    question = asked(parts, 2)
    before = both(parts, fast, question)[0].clone()
    weights = dict(parts.unet.named_parameters())
    key = next(name for name in weights if "attn2.to_k" in name)  # of which texts are kept
    with torch.no_grad():
        weights[key].mul_(3)
    same(both(parts, fast, question))
    conv = next(name for name in weights if "conv1.weight" in name)
    weights[conv].data = weights[conv].data * 1.5
    after = both(parts, fast, question)
    same(after)
    assert (after[0] - before).abs().max() > 1e-3
    weights[key].data.mul_(2)  # torch does not see it: whoever does that says so
    parts.weights_version = "patched"
    same(both(parts, fast, question))


def test_what_a_controlnet_adds_goes_to_its_rows(parts):
    fast = FastUnet(parts, 2)
    question = asked(parts, 3)
    levels: list[torch.Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _module, _args, out: levels.extend(out[1]))
        for module in parts.unet.down_blocks
    ]
    middle: list[torch.Tensor] = []
    hooks.append(parts.unet.mid_block.register_forward_hook(lambda _m, _a, out: middle.append(out)))
    hooks.append(parts.unet.conv_in.register_forward_hook(lambda _m, _a, out: levels.append(out)))
    without = both(parts, fast, question)[1]
    for hook in hooks:
        hook.remove()
    halves = len(levels) // 2  # both calls were heard: a module that somebody listens to is called itself
    added = tuple(torch.randn_like(level) for level in levels[:halves])
    more = {
        "down_block_additional_residuals": added,
        "mid_block_additional_residual": torch.randn_like(middle[0]),
    }
    pair = both(parts, fast, question, **more)
    same(pair)
    assert (pair[1] - without).abs().max() > 0.01


def test_a_shorter_text_beside_a_longer_one_is_masked(parts):
    fast = FastUnet(parts, 2)
    question = asked(parts, 4, tokens=154)
    mask = torch.arange(154).lt(77).expand(4, -1).clone()
    mask[1] = True
    masked = both(parts, fast, question, encoder_attention_mask=mask)
    same(masked)
    assert (masked[0] - both(parts, fast, question)[0]).abs().max() > 1e-4


def test_joined_edges_are_joined(parts):
    fast = FastUnet(parts, 1)
    question = asked(parts, 2)
    plain = both(parts, fast, question)[0]
    with seamless(True, parts.unet):
        joined = both(parts, fast, question)
        same(joined)
    assert (joined[0] - plain).abs().max() > 1e-3
    same(both(parts, fast, question))


def test_somebody_who_listens_in_the_unet_is_heard(parts):
    fast = FastUnet(parts, 2)
    both(parts, fast, asked(parts, 2))
    heard = []
    attention = parts.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    hook = attention.register_forward_hook(lambda _m, _a, out: heard.append(out) or out * 2)
    same(both(parts, fast, asked(parts, 2)))
    hook.remove()
    assert len(heard) == 2  # once each


def test_rows_do_not_see_their_company(parts):
    fast = FastUnet(parts, 2)
    question = asked(parts, 5)
    together = both(parts, fast, question)[0]
    for row in range(5):
        alone = both(parts, fast, {name: one[row : row + 1] for name, one in question.items()})[0]
        torch.testing.assert_close(alone[0], together[row], atol=ROUNDING, rtol=0)


def test_pictures_are_the_same_within_one_level():
    """The bar: 1 of 255 at any pixel, through 20 steps with guidance, alone and in company."""
    engine = load_engine(base_model("embedded"), device="cpu", threads=1)
    assert isinstance(engine.parts.fast_unet, FastUnet)
    slow = replace(engine.parts, fast_unet=None)
    for sampler in ("ddim", "euler_a"):
        request = GenerationRequest(
            "a photo of a red star", seed=3, count=2, sampler=sampler, guidance_scale=7.5
        )
        ours = engine.generate(request)
        plain = draw(slow, request)
        for one, other in zip(ours, plain, strict=True):
            difference = np.asarray(one.image, int) - np.asarray(other.image, int)
            assert np.asarray(other.image).std() > 10
            assert np.abs(difference).max() <= 1


def test_training_and_other_number_types_keep_the_plain_module(tiny_pipeline: ModelFiles):
    live = load_parts(tiny_pipeline, CPU, torch.float32)
    assert live.fast_unet is None, "only an engine has one"
    half = load_parts(tiny_pipeline, CPU, torch.bfloat16)
    prepare(half)
    assert half.fast_unet is None
    prepare(live)
    question = asked(live, 1)
    x, times = question.pop("x"), question.pop("times")
    live.unet.train().requires_grad_(True)
    live.fast_unet(x, times, **question, return_dict=False)[0].sum().backward()
    assert all(weight.grad is not None for weight in live.unet.conv_in.parameters())
