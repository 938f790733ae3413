"""What reads and writes text needs no torch: a form counts brackets, a server reads a picture's history."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "diffusers", "transformers", "PIL", "huggingface_hub")
FILES = (
    "prompt_language", "prompt_tags", "styles", "wildcards", "chunks", "infotext", "picture_text", "comfy_graph",
    "other_programs",
)  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_text_is_read_without_anything_heavy(name):
    code = (
        f"import fastsd_lib.generation.{name}, sys; print([one for one in {HEAVY!r} if one in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
