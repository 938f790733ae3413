"""How many pictures a U-Net call should hold: `python3 -m benchmarks.rows [--sd15]`.

Prints picture-steps per second of processor time, so that other programs on the machine count little.
"""

from __future__ import annotations

import argparse
import time

import torch

from fastsd_lib.generation.denoising import denoise_together
from fastsd_lib.generation.engine import load_engine
from fastsd_lib.generation.passes import batch
from fastsd_lib.generation.plan import drawing_mode, make_plan
from fastsd_lib.generation.request import GenerationRequest
from fastsd_lib.models import registry

STEPS = 6


def embedded(counts: list[int]) -> None:
    """The whole way of single pictures that step together, the decoder apart."""
    engine = load_engine(registry.base_model(), "cpu")
    request = GenerationRequest("a photo of a red star", inference_steps=STEPS, sampler="euler_a")
    for count in counts:
        plans = [make_plan(engine.parts, request, engine.texts) for _ in range(count)]
        with drawing_mode(plans[0]):
            passes = [batch(plan, range(1)) for plan in plans]
            strands = [next(one) for one in passes]
            denoise_together(engine.parts, plans[0].levels, strands)  # warm
            began, clock = time.process_time(), time.perf_counter()
            while strands[0].ask is not None:
                denoise_together(engine.parts, plans[0].levels, strands)
            drawn, stepping = time.process_time() - began, time.perf_counter() - clock
            began = time.process_time()
            for one in passes:
                next(one, None)
            decoded = time.process_time() - began
        rate = count * (STEPS - 1) / drawn
        print(
            f"{count:3d} pictures at once: {rate:6.1f} picture-steps/s, {1000 * stepping / (STEPS - 1):6.0f} ms a step,"
            f" {1000 * decoded / count:5.1f} ms to decode one",
            flush=True,
        )
    for count in (1, 4, 16):
        latents = torch.randn(count, 4, 16, 16)
        with torch.inference_mode():
            engine.parts.vae.decode(latents)
            began = time.process_time()
            engine.parts.vae.decode(latents)
        print(
            f"{count:3d} decoded at once: {1000 * (time.process_time() - began) / count:5.1f} ms each",
            flush=True,
        )


def sd15(counts: list[int]) -> None:
    """Stable Diffusion 1.5's U-Net with random weights at 256 px, guided: two rows a picture."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
    unet = unet.to_empty(device="cpu").eval().requires_grad_(False)
    for weight in unet.parameters():
        torch.nn.init.normal_(weight, std=0.02)
    for count in counts:
        inputs = torch.randn(2 * count, 4, 32, 32), torch.full((2 * count,), 500.0)
        words = torch.randn(2 * count, 77, 768)
        with torch.inference_mode():
            unet(*inputs, encoder_hidden_states=words)
            began = time.process_time()
            unet(*inputs, encoder_hidden_states=words)
        took = time.process_time() - began
        print(f"{count:3d} pictures at once: {count / took:6.3f} picture-steps/s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sd15", action="store_true")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    arguments = parser.parse_args()
    (sd15 if arguments.sd15 else embedded)(arguments.counts)
