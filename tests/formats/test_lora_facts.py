"""What is told of a LoRA without reading its weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastsd_lib.core.errors import UserError
from fastsd_lib.formats.lora_convert import convert_lora
from fastsd_lib.formats.lora_facts import lora_facts, top_tags

KEY = "lora_unet_input_blocks_4_1_transformer_blocks_{}_attn2_to_k"


def lora(path: Path) -> Path:
    tensors = {}
    for number, rank in enumerate((8, 8, 4)):
        key = KEY.format(number)
        tensors |= {
            f"{key}.lora_down.weight": torch.randn(rank, 2048),
            f"{key}.alpha": torch.tensor(rank / 2),
        }
        tensors[f"{key}.lora_up.weight"] = torch.randn(640, rank)
    tags = {"10_zwx": {"zwx": 10, " smiling": 4}, "2_more": {"zwx": 2, "hat": 3, "odd": "no number"}}
    said = {
        "ss_tag_frequency": json.dumps(tags),
        "modelspec.trigger_phrase": "zwx person",
        "ss_base_model_version": "sdxl_base_v1-0",
    }
    save_file(tensors, path, said)
    return path


@pytest.mark.parametrize("naming", ["kohya", "peft"])
def test_facts_are_the_same_under_both_names(tmp_path: Path, naming: str) -> None:
    made = convert_lora(lora(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", naming)  # type: ignore[arg-type]
    facts = lora_facts(made)
    assert (facts.family, facts.naming, facts.layers) == ("sdxl", naming, 3)
    assert (facts.rank, facts.alpha, facts.scale) == (8, 4.0, 0.5)
    assert facts.tags == (("zwx", 12), ("smiling", 4), ("hat", 3))
    assert (facts.trigger, facts.base) == ("zwx person", "sdxl_base_v1-0")


@pytest.mark.parametrize("said", ["", "[1, 2]", "{", '{"a": 3}', "[" * 100_000])
def test_odd_tables_of_words_are_no_words(said: str) -> None:
    assert top_tags({"ss_tag_frequency": said}) == ()


def test_another_file_is_refused(tmp_path: Path) -> None:
    save_file({"encoder.conv_in.weight": torch.zeros(2)}, tmp_path / "vae.safetensors")
    with pytest.raises(UserError, match=r"encoder\.conv_in\.weight is no tensor of a LoRA"):
        lora_facts(tmp_path / "vae.safetensors")


def test_facts_and_conversions_need_no_torch(tmp_path: Path) -> None:
    """A process of its own, in which torch cannot be imported, converts there and back in 64 MB."""
    lora(tmp_path / "a.safetensors")
    script = (
        "import sys; sys.modules['torch'] = None; from pathlib import Path\n"
        "from fastsd_lib.formats.lora_convert import convert_lora\n"
        "from fastsd_lib.formats.lora_facts import lora_facts\n"
        "from fastsd_lib.formats import control_convert, vae_convert, embedding_convert\n"
        "b = convert_lora(Path('a.safetensors'), Path('b.safetensors'), 'peft')\n"
        "convert_lora(b, Path('c.safetensors'), 'kohya'); print(lora_facts(b).rank)\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True,
                          env={"PYTHONPATH": str(Path(__file__).parents[2])}, timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr
    rank, peak_kib = map(int, done.stdout.split())
    assert rank == 8
    assert peak_kib < 64 * 1024
    assert (tmp_path / "c.safetensors").stat().st_size > 0
