"""Pictures put into words: by a BLIP folder of the user's, by the judge, or not at all with a way out."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image, ImageDraw

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.interrogate import caption, find_captioner
from fastsd_lib.models import registry

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "[DEC]",
    "[ENC]",
    "a",
    "cat",
    "photo",
    "of",
    "red",
    "star",
]


def star() -> Image.Image:
    picture = Image.new("RGB", (64, 64), (40, 92, 208))
    points = [
        (32, 8),
        (38, 25),
        (56, 25),
        (42, 36),
        (47, 54),
        (32, 43),
        (17, 54),
        (22, 36),
        (8, 25),
        (26, 25),
    ]
    ImageDraw.Draw(picture).polygon(points, fill=(214, 39, 40))
    return picture


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    """A BLIP of random weights, saved as its makers' library saves it."""
    from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration

    folder = tmp_path_factory.mktemp("models") / "BLIP" / "tiny"
    torch.manual_seed(3)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        **small, "vocab_size": len(WORDS), "encoder_hidden_size": 16, "bos_token_id": 5, "eos_token_id": 3,
        "sep_token_id": 3, "pad_token_id": 0, "max_position_embeddings": 64,
    }  # fmt: skip
    config = BlipConfig(text_config=text, vision_config={**small, "image_size": 32, "patch_size": 8})
    BlipForConditionalGeneration(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS), "utf-8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    return folder


def test_a_blip_folder_says_what_its_makers_library_says(blip):
    """Beside transformers' own chain of processor and model, on the same folder."""
    from transformers import BertTokenizerFast, BlipForConditionalGeneration
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 32, "width": 32}}
    pixels = BlipImageProcessorPil(**half)(star(), return_tensors="pt")["pixel_values"]
    model = BlipForConditionalGeneration.from_pretrained(blip).eval()
    said = model.generate(pixel_values=pixels, max_new_tokens=48, num_beams=3)
    expected = BertTokenizerFast.from_pretrained(blip).decode(said[0], skip_special_tokens=True).strip()
    assert expected and caption(star(), [blip.parent]) == expected
    assert caption(star(), [blip]) == expected  # the folder itself, or the one around it


def test_the_judge_puts_its_own_world_into_words():
    assert caption(star(), [], registry.EMBEDDED_FOLDER) == "a photo of a red star on a blue background"


def test_the_users_blip_comes_before_the_judge(blip, tmp_path):
    assert caption(star(), [tmp_path / "none", blip]) != caption(star(), [], registry.EMBEDDED_FOLDER)
    assert find_captioner([tmp_path / "none"]) is None


def test_without_either_it_is_said_what_to_put_where(tmp_path):
    with pytest.raises(UserError, match="no model here that puts pictures into words") as error:
        caption(star(), [tmp_path])
    assert "Salesforce/blip-image-captioning-base" in error.value.fix and "models/BLIP" in error.value.fix


def test_a_folder_of_another_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "blip"}')
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be read as BLIP") as error:
        caption(star(), [tmp_path])
    assert error.value.fix == "download Salesforce/blip-image-captioning-base again."
