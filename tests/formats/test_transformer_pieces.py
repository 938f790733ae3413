"""T5's words in the one small file of a pipeline that is no text."""

from __future__ import annotations

import shutil
from pathlib import Path

from tiny_transformers import save_sd3

from fastsd_lib.formats.conversion import ConversionChoices, convert_model


def test_t5s_pieces_come_along_byte_by_byte_and_marks_alone_are_no_words(tmp_path: Path) -> None:
    folder = save_sd3(tmp_path / "model").path
    words, pieces = folder / "tokenizer_3", bytes(range(256))  # no text in any encoding
    (words / "spiece.model").write_bytes(pieces)
    (words / "tokenizer.json").unlink()  # as older folders are
    made = convert_model(folder, tmp_path / "half", ConversionChoices("bf16")).path
    assert (made / "tokenizer_3" / "spiece.model").read_bytes() == pieces
    shutil.rmtree(made)
    back = convert_model(convert_model(folder, tmp_path / "m.safetensors").path, tmp_path / "back")
    assert (back.path / "tokenizer_3" / "tokenizer_config.json").is_file()
    assert len(back.notes) == 1 and "holds no tokenizer_3" in back.notes[0]
