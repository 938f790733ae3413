import pytest
from model_site import contents
from PIL import Image, ImageDraw

from fastsd_lib.training.config import DreamBoothConfig
from fastsd_lib.workflows import dreambooth
from tests.bad_server import bad_server, model_bytes


@pytest.fixture
def config():
    """Two steps of the text encoder, three of the U-Net."""
    return DreamBoothConfig(
        "photo of sks cat",
        "photo of a cat",
        class_images=3,
        resolution_px=64,
        text_encoder_steps=2,
        unet_steps=3,
        batch_size=1,
        unet_learning_rate=1e-3,
        text_encoder_learning_rate=1e-3,
        save_every_steps=2,
        sample_every_steps=3,
        sample_count=1,
    )


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "my photos"
    folder.mkdir()
    for number in range(3):
        picture = Image.new("RGB", (120, 90), (40, 60 * number, 120))
        ImageDraw.Draw(picture).ellipse((30, 20, 80, 70), fill=(250, 220, 80))
        picture.save(folder / f"cat ({number}).jpg")
    return folder


@pytest.fixture
def session(photos, tmp_path):
    session = dreambooth.open_session("my cat", tmp_path / "root")
    dreambooth.add_photos(session, photos)
    return session


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return contents(tmp_path_factory.mktemp("made") / "files")


@pytest.fixture
def site(files, monkeypatch, tmp_path):
    """Serves /f/NAME; no token and no cache of the user's is in reach."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in (
        "HF_TOKEN",
        "HF_ENDPOINT",
        "HF_HOME",
        "CIVITAI_TOKEN",
        "CIVITAI_API_TOKEN",
        "CIVITAI_API_KEY",
    ):
        monkeypatch.delenv(name, raising=False)
    with bad_server(model_bytes()) as server:
        server.ways["f"] = lambda request: request.give(files[request.path.split("/")[-1]])
        yield server
