"""Trains the embedded model's learned word by textual inversion (Gal et al. 2022, arXiv 2208.01618).

    python3 -m benchmarks.tiny_model.embedding           # a quarter of an hour on one core
    python3 -m benchmarks.tiny_model.extras_bars         # what it is worth

The word is for the character that no picture of the base model's training shows (`world.SUBJECT`). Nothing of the
model changes: a few vectors, which stand in the place of the word, are all that is learned.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
from safetensors.torch import save

from benchmarks.tiny_model import world
from benchmarks.tiny_model.extras import EXTRAS, MADE_BY, decaying, embedded_parts, latents_of, loss_of
from fastsd_lib.core.files import atomic_path
from fastsd_lib.formats.parts import Parts

NAME = "tiny_zorp"
VECTORS = 4
START_WORD = "monster"
BATCH, RATE, SEED = 16, 1e-2, 19
TEMPLATES = ("a photo of a {} on {} background", "a picture of a {} on {} background", "a photo of a {}")


def train(out: Path, steps: int, count: int) -> Path:
    parts = embedded_parts()
    dice = torch.Generator().manual_seed(SEED)
    clean = latents_of(parts, world.subject_pictures(count, SEED))
    behind = [tuple(world.COLOURS)[number % len(world.COLOURS)] for number in range(count)]
    table = parts.text_encoder.get_input_embeddings()
    word = parts.tokenizer(START_WORD, add_special_tokens=False).input_ids
    start = table.weight[word].mean(0, keepdim=True).expand(VECTORS, -1)
    spread = table.weight.std()
    vectors = torch.nn.Parameter(start + 0.1 * spread * torch.randn(start.shape, generator=dice))
    optimizer = torch.optim.Adam([vectors])
    rng, begun, recent = random.Random(SEED), time.monotonic(), []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * spread.item() * decaying(step, steps)
        rows = torch.randint(count, (BATCH,), generator=dice)
        texts = [rng.choice(TEMPLATES).format("\0", world.article(behind[row])) for row in rows]
        loss = loss_of(parts, clean[rows], said(parts, texts, vectors), dice)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        recent = [*recent[-49:], loss.item()]
        if step % 50 == 49:
            seconds = time.monotonic() - begun
            print(f"{step + 1} steps, {seconds:.0f} s, loss {sum(recent) / len(recent):.4f}", flush=True)
    facts = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/textual-inversion",
        "modelspec.title": NAME,
        "modelspec.description": "The purple one-eyed monster. For the embedded model of fastsd alone.",
        "modelspec.usage_hint": f'the word {NAME}, as in "a photo of a {NAME} on a green background"',
        "modelspec.license": "Apache-2.0",
        "step": str(steps),
        "sd_checkpoint_name": "fastsd embedded",
        "fastsd.made_by": f"{MADE_BY}embedding --steps {steps} --pictures {count}",
    }
    with atomic_path(out) as scratch:
        scratch.write_bytes(save({"emb_params": vectors.detach().contiguous()}, facts))
    return out


def said(parts: Parts, texts: list[str], vectors: torch.Tensor) -> torch.Tensor:
    """Hidden states (B, 77, width) of texts in which "\\0" is the learned word."""
    tokenizer, most = parts.tokenizer, parts.text_encoder.config.max_position_embeddings
    rows, places = [], []
    for text in texts:
        before, after = (
            tokenizer(half, add_special_tokens=False).input_ids if half.strip() else []
            for half in text.split("\0")
        )
        row = [tokenizer.bos_token_id, *before, *[0] * len(vectors), *after]
        places.append(len(before) + 1)
        rows.append(row + [tokenizer.eos_token_id] * (most - len(row)))

    def put(_module: torch.nn.Module, _inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        for number, at in enumerate(places):
            output[number, at : at + len(vectors)] = vectors
        return output

    handle = parts.text_encoder.get_input_embeddings().register_forward_hook(put)
    try:
        return parts.text_encoder(input_ids=torch.tensor(rows)).last_hidden_state
    finally:
        handle.remove()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=EXTRAS / "embeddings" / f"{NAME}.safetensors")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--pictures", type=int, default=240)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(train(arguments.out, arguments.steps, arguments.pictures))
