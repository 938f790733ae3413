from __future__ import annotations

from dataclasses import dataclass

from fastsd_lib.core.field_words import field_comments, label_of


@dataclass
class Choices:
    plain: int = 1  # how many
    bracketed: str = "full"  # full, lora: train all weights, or a few beside them: less to keep
    mark: str = "#1"
    quiet: bool = False


def test_a_comment_is_found_behind_its_field_and_inside_its_brackets():
    assert field_comments(Choices) == {
        "plain": "how many",
        "bracketed": "full, lora: train all weights, or a few beside them: less to keep",
        "mark": "",
        "quiet": "",
    }


def test_labels_speak_the_projects_words():
    assert label_of("unet_steps") == "U-Net steps"
    assert label_of("lora_rank") == "LoRA rank"
    assert label_of("resolution_px") == "Resolution (px)"
