import pytest
from PIL import Image, ImageDraw

from fastsd_lib.training.config import DreamBoothConfig
from fastsd_lib.workflows import dreambooth


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
