"""A folder of the older notebooks, trained on from its own .ckpt by the command line; nothing of it changes."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fastsd_lib import cli
from fastsd_lib.formats.single_file import export_single_file
from fastsd_lib.models import registry
from fastsd_lib.models.identify import identify
from fastsd_lib.sessions.session import Session, read_manifest, sessions_dir

SHORT = (
    "resolution_px=64", "text_encoder_steps=1", "unet_steps=2", "sample_every_steps=0", "save_every_steps=0",
    "text_encoder_learning_rate=1e-4",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Every kind of file that the older notebooks wrote; the model is the embedded one as they would save it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = sessions_dir(tmp_path) / "phtmejhn"
    (folder / "instance_images").mkdir(parents=True)
    (folder / "captions").mkdir()
    with zipfile.ZipFile(folder / "instance_images.zip", "w") as archive:
        for number, colour in enumerate(("red", "green", "blue"), 1):
            data = io.BytesIO()
            picture = Image.new("RGB", (96, 96), "white")
            picture.paste(colour, (20, 20, 70, 70))
            picture.save(data, "JPEG")
            name = f"phtmejhn ({number}).jpg"
            (folder / "instance_images" / name).write_bytes(data.getvalue())
            archive.writestr(f"instance_images/{name}", data.getvalue())
    (folder / "captions" / "phtmejhn (1).txt").write_bytes(b"smiling\r\n")
    with zipfile.ZipFile(folder / "captions.zip", "w") as archive:
        archive.writestr("captions/phtmejhn (1).txt", b"smiling\r\n")
    export_single_file(registry.base_model(), tmp_path / "model.safetensors", dtype=None)
    weights = load_file(tmp_path / "model.safetensors")
    torch.save({"state_dict": weights}, folder / "phtmejhn.ckpt")
    torch.save({"state_dict": weights}, folder / "phtmejhn_step_500.ckpt")
    (tmp_path / "Fast-Dreambooth" / "token.txt").write_text("hf_verysecret\n")
    return folder


def hashes(root: Path) -> dict[str, str]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("zipped", [False, True])
def test_it_trains_on_from_its_own_ckpt_and_every_old_file_stays_as_it_was(tmp_path, folder, capsys, zipped):
    if zipped:
        for part in ("instance_images", "captions"):
            for path in (folder / part).iterdir():
                path.unlink()
            (folder / part).rmdir()
    old = hashes(tmp_path / "Fast-Dreambooth")
    root = ["--root", str(tmp_path)]
    assert cli.main(["session", "show", "phtmejhn", *root]) == 0
    assert cli.main(["session", "verify", "phtmejhn", *root]) == 0
    assert hashes(tmp_path / "Fast-Dreambooth") == old
    assert cli.main(["train", "phtmejhn", "--model", str(folder / "phtmejhn.ckpt"), *root, *SHORT]) == 0
    session = Session(folder)
    assert "instance_prompt: photo of phtmejhn" in session.recipe.read_text()
    assert identify(session.model_file).family == "sd1"
    assert read_manifest(session)["base_model"] == str(folder / "phtmejhn.ckpt")
    now = hashes(tmp_path / "Fast-Dreambooth")
    assert {name: now.get(name) for name in old} == old
    assert cli.main(["session", "verify", "phtmejhn", *root]) == 0
    said = capsys.readouterr()
    assert "identifiers: {'phtmejhn': 3}" in said.out and "photo of phtmejhn" in said.out
    assert "hf_verysecret" not in said.out + said.err
