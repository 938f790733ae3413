"""Tokenizer and text encoder, trained by contrast with a picture network (Radford et al. 2021, arXiv 2103.00020)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from benchmarks.tiny_model.pictures import as_tensor, pictures_of
from benchmarks.tiny_model.team import Budget, Team, fit
from fastsd_lib.generation.judge import Judge


def build_tokenizer(work: Path) -> None:
    """A byte-level BPE of CLIP's kind over the world's captions: vocab.json and merges.txt."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    words = [
        "sks",
        "zwx",
        "ohwx",
        "xjy",
        "vrk",
        "style",
        "drawing",
        "picture",
        "photo",
        "real",
        "cartoon",
        "toy",
        "with",
        "and",
        "the",
    ]
    corpus = json.loads((work / "model.captions.json").read_text()) + [" ".join(words)] * 400
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=900, end_of_word_suffix="</w>", special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # CLIP's order: bytes, bytes that end a word, merges, the two special tokens.
    vocab = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in learned["merges"]]
    vocab += ["".join(pair) for pair in merges]
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    place = work / "tokenizer"
    place.mkdir(exist_ok=True)
    (place / "vocab.json").write_text(
        json.dumps({token: i for i, token in enumerate(dict.fromkeys(vocab))}, ensure_ascii=False)
    )
    (place / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "do_lower_case": True,
        "errors": "replace",
        "add_prefix_space": False,
    }
    (place / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    special = {key: config[key] for key in ("bos_token", "eos_token", "unk_token", "pad_token")}
    (place / "special_tokens_map.json").write_text(json.dumps(special, indent=2))


def load_tokenizer(work: Path):
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(work / "tokenizer")


def tokens_of(tokenizer, captions: list[str]) -> torch.Tensor:
    return tokenizer(
        captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids


def build_text_encoder(tokenizer) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            projection_dim=128,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train_clip(team: Team, work: Path, budget: Budget) -> None:
    """Text and picture of one pair agree, those of different pairs do not; the picture side also classifies."""
    pictures, labels = pictures_of(work, "model"), torch.from_numpy(np.load(work / "model.labels.npy"))
    captions = json.loads((work / "model.captions.json").read_text())
    if team.rank == 0:
        build_tokenizer(work)
    if team.size > 1:
        dist.barrier()
    tokenizer = load_tokenizer(work)
    ids = tokens_of(tokenizer, captions)
    torch.manual_seed(0)
    pair = nn.ModuleDict(
        {
            "text": build_text_encoder(tokenizer),
            "judge": Judge(),
            "text_head": nn.Linear(128, 128),
            "picture_head": nn.Linear(Judge.width, 128),
        }
    )
    pair["scale"] = nn.Linear(1, 1)  # its weight is the learned temperature
    pair["scale"].weight.data.fill_(math.log(10))
    draw = team.batches(len(pictures), 96)

    def loss_of(step: int) -> torch.Tensor:
        rows = next(draw)
        features = pair["judge"].features(as_tensor(pictures[rows]))
        longest = (
            int((ids[rows] != tokenizer.eos_token_id).sum(1).max()) + 1
        )  # causal: what follows the end changes nothing
        text = pair["text"](input_ids=ids[rows, :longest]).pooler_output
        a = F.normalize(pair["text_head"](text), dim=-1)
        b = F.normalize(pair["picture_head"](features), dim=-1)
        logits = pair["scale"].weight.exp().clamp(max=60).squeeze() * a @ b.T
        # Equal captions in a batch are not each other's negatives.
        same = torch.tensor([[captions[i] == captions[j] for j in rows] for i in rows], dtype=torch.float32)
        target = same / same.sum(1, keepdim=True)
        contrast = (
            -(target * logits.log_softmax(1)).sum(1).mean() - (target.T * logits.log_softmax(0)).sum(0).mean()
        )
        return contrast / 2 + pair["judge"].loss(features, labels[rows])

    average = fit(
        team, "clip", pair, loss_of, steps=budget.clip_steps, minutes=budget.clip_minutes, rate=2e-3, ema=0.99
    )
    if team.rank == 0:
        pair.load_state_dict(average)
        torch.save(pair["text"].state_dict(), work / "text.pt")
        torch.save(pair["judge"].state_dict(), work / "judge_start.pt")
