"""What drawing costs beyond the bare U-Net, beside diffusers' own pipeline: `fastsd benchmark generate`.

One picture, the same seed and sampler for both. All three take turns in one process on one thread, so that
a busy machine slows them alike: trust the differences and ratios of the medians, not the milliseconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

from fastsd_lib.generation.request import GenerationRequest
from fastsd_lib.models.registry import base_model


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fastsd benchmark generate", description=__doc__)
    parser.add_argument("--model", default="embedded", help="a Diffusers folder")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args(arguments)
    model = base_model(options.model)
    import torch
    from diffusers import StableDiffusionPipeline

    from fastsd_lib.generation.engine import load_engine

    engine = load_engine(model, device="cpu", threads=1)
    pipeline = StableDiffusionPipeline.from_pretrained(model.path)
    pipeline.set_progress_bar_config(disable=True)
    prompt, steps, side = "a photo of a red star on a blue background", options.steps, engine.parts.side_px
    order = GenerationRequest(prompt, inference_steps=steps, guidance_scale=7.5)
    latents = torch.randn(2, 4, side // engine.parts.vae_factor, side // engine.parts.vae_factor)
    context = torch.randn(2, 77, engine.parts.unet.config.cross_attention_dim)

    def bare() -> None:
        with torch.inference_mode():
            for step in range(steps):
                engine.parts.unet(latents, torch.tensor(999 - step), context, return_dict=False)

    def peer() -> None:
        noise = torch.Generator().manual_seed(42)
        pipeline(prompt, num_inference_steps=steps, guidance_scale=7.5, generator=noise)

    contestants = {"bare U-Net": bare, "fastsd": lambda: engine.generate(order), "diffusers": peer}
    ms = _medians_ms(contestants, options.rounds)
    print(
        f"one picture, {side} px, {steps} steps of ddim, guidance 7.5, 1 thread, median of {options.rounds}"
    )
    for name, spent in ms.items():
        print(f"{name:>10}  {spent:7.1f} ms   beyond the U-Net {spent - ms['bare U-Net']:6.1f} ms")
    print(f"fastsd / diffusers = {ms['fastsd'] / ms['diffusers']:.3f}")
    return 0


def _medians_ms(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    spent: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 2):
        for name, run in contestants.items():
            started = time.process_time()
            run()
            if number >= 2:  # the first two warm up
                spent[name].append(1000 * (time.process_time() - started))
    return {name: statistics.median(values) for name, values in spent.items()}


if __name__ == "__main__":
    raise SystemExit(main())
