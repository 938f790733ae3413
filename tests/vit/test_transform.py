"""Our transform against transformers' own processors, which are the witness; and every picture that people have."""

from __future__ import annotations

import json
import struct
import time
import zlib

import numpy as np
import pytest
import tiny_vit
from PIL import Image
from tiny_vit import make_vit, photos

from fastsd_lib.core.errors import UserError
from fastsd_lib.images.load import PhotoError
from fastsd_lib.vit.geometry import PROCESSORS, Geometry
from fastsd_lib.vit.model import open_model
from fastsd_lib.vit.transform import VIEWS, Transform

KINDS = ("vit", "deit", "dinov2", "swin", "convnext")
SHAPES = ((500, 375), (375, 500), (33, 900), (31, 17), (5, 3), (32, 32), (224, 224), (1, 1))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    top = tmp_path_factory.mktemp("models")
    return {kind: make_vit(top / kind, kind=kind) for kind in KINDS}


def theirs(folder):
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    return lambda image: processor(image, return_tensors="np")["pixel_values"][0]


def processor_of(tmp_path, settings, kind="vit"):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_of_the_models_own_processor_to_the_last_bit(folders, tmp_path, kind):
    ours, processor = Transform.of(open_model(folders[kind])), theirs(folders[kind])
    for path in photos(tmp_path, len(SHAPES), sizes=SHAPES):
        with Image.open(path) as image:
            mine, other = ours(image), processor(image)
            assert mine.dtype == other.dtype == np.float32
            np.testing.assert_array_equal(mine, other, err_msg=f"{kind} {image.size}")


@pytest.mark.parametrize("size", [383, 384])
def test_convnext_crops_below_384_pixels_and_squashes_from_there_on(tmp_path, size):
    settings = {
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": size},
        "crop_pct": 0.9,
    }
    folder = processor_of(tmp_path, settings, "convnext")
    image = tiny_vit._picture("coffee")
    ours = Transform(Geometry.read(folder, "convnext"))(image)
    np.testing.assert_array_equal(ours, theirs(folder)(image))


@pytest.mark.parametrize("name", [*PROCESSORS, "CLIP", "Siglip", "MobileNetV2", "Beit"])
def test_what_a_file_does_not_say_is_as_transformers_has_it(tmp_path, name):
    folder = processor_of(tmp_path, {"image_processor_type": f"{name}ImageProcessor"})
    image = tiny_vit._picture("cat")
    ours = Transform(Geometry.read(folder, "vit"))
    np.testing.assert_array_equal(ours(image), theirs(folder)(image))


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"feature_extractor_type": "ViTFeatureExtractor", "size": 48, "resample": 2}, "vit"),
        (
            {"feature_extractor_type": "DeiTFeatureExtractor", "size": 60, "crop_size": 48, "resample": 3},
            "deit",
        ),
        ({"feature_extractor_type": "ViTFeatureExtractor", "size": 48}, "swin"),
        ({"image_processor_type": "ViTImageProcessorFast", "size": {"height": 48, "width": 64}}, "vit"),
        (
            {"size": {"shortest_edge": 60}, "crop_size": {"height": 48, "width": 40}, "do_center_crop": True},
            "dinov2",
        ),
        (
            {"image_processor_type": "BitImageProcessor", "size": 40, "crop_size": 64},
            "dinov2",
        ),  # crop > picture
    ],
)
def test_files_of_every_age_are_understood(tmp_path, settings, kind):
    folder = processor_of(tmp_path, settings, kind)
    image = tiny_vit._picture("astronaut").crop((0, 30, 400, 500))
    np.testing.assert_array_equal(Transform(Geometry.read(folder, kind))(image), theirs(folder)(image))


@pytest.mark.parametrize("size", [(1920, 1080), (1080, 1920), (4032, 3024), (640, 480), (447, 600)])
def test_a_jpeg_decoded_small_differs_by_a_fraction_of_a_level(tmp_path, size):
    """The bars of the facts: 0.3 of 255 levels on average, 4 at most, against a whole decode and transformers' resize."""
    folder = processor_of(tmp_path, {"image_processor_type": "ViTImageProcessor"})
    ours, processor = Transform(Geometry.read(folder, "vit")), theirs(folder)
    for path in photos(tmp_path, 3, sizes=(size,), quality=92):
        with Image.open(path) as image:
            error = np.abs(ours.open_and_apply(path) - processor(image)) * 127.5
        assert error.mean() <= 0.3 and error.max() <= 4.5, (error.mean(), error.max())
        assert ours.open(path).width <= max(size[0] / 2, 900)


def test_a_picture_smaller_than_twice_the_target_is_decoded_whole(tmp_path):
    folder = processor_of(tmp_path, {"image_processor_type": "ViTImageProcessor"})
    ours, processor = Transform(Geometry.read(folder, "vit")), theirs(folder)
    (path,) = photos(tmp_path, 1, sizes=((640, 430),))
    with Image.open(path) as image:
        np.testing.assert_array_equal(ours.open_and_apply(path), processor(image))


# ---------------------------------------------------------------- what people's files are like


@pytest.fixture
def plain():
    """100 x 60 pixels in, 60 x 100 as the model sees it: no resizing, so that pixels can be compared."""
    geometry = Geometry((60, 100), (60, 100), 2, (0.0,) * 3, (1.0,) * 3, rescale=1.0)
    return Transform(geometry)


def scene(width=100, height=60):
    down, across = np.mgrid[0:height, 0:width]
    pixels = np.stack([40 + 0 * down, 40 + 180 * across // width, 60 + 150 * down // height], axis=2)
    pixels[: height // 4, : width // 4] = (220, 20, 20)
    return Image.fromarray(pixels.astype(np.uint8))


def levels(transform, path):
    return np.moveaxis(transform.open_and_apply(path), 0, -1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(100, 60), (800, 480)])
def test_every_exif_orientation_is_seen_upright_also_when_decoded_small(tmp_path, plain, orientation, size):
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    upright = scene(*size)
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "p.jpg", exif=exif, quality=97)
    expected = np.asarray(scene().convert("RGB"), np.float32)
    assert np.abs(levels(plain, tmp_path / "p.jpg") - expected).mean() < 6


def test_transparency_shows_white_wide_grey_keeps_its_shades_and_frames_count_as_one(tmp_path, plain):
    rgb = scene()
    clear = rgb.convert("RGBA")
    clear.putalpha(Image.new("L", rgb.size, 0))
    clear.save(tmp_path / "clear.png")
    assert (levels(plain, tmp_path / "clear.png") == 255).all()
    ramp = np.tile(np.linspace(0, 65535, 100), (60, 1)).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "wide.png")
    assert np.abs(levels(plain, tmp_path / "wide.png")[0, :, 0] - np.linspace(0, 255, 100)).max() <= 1
    rgb.save(tmp_path / "moving.gif", save_all=True, append_images=[Image.new("RGB", rgb.size)] * 3)
    assert np.abs(levels(plain, tmp_path / "moving.gif") - np.asarray(rgb)).mean() < 6
    rgb.convert("CMYK").save(tmp_path / "print.jpg", quality=97)
    assert np.abs(levels(plain, tmp_path / "print.jpg") - np.asarray(rgb)).mean() < 6
    for name, mode in (("one.png", "1"), ("grey.jpg", "L"), ("few.png", "P"), ("both.png", "LA")):
        rgb.convert(mode).save(tmp_path / name)
        shown = np.asarray(rgb.convert(mode).convert("RGB"), np.float32)
        assert np.abs(levels(plain, tmp_path / name) - shown).mean() < 3, name


def test_an_image_that_is_open_already_is_treated_like_its_file(tmp_path, plain):
    exif = Image.Exif()
    exif[0x0112] = 6
    scene().transpose(Image.Transpose.ROTATE_90).save(tmp_path / "p.png", exif=exif)
    with Image.open(tmp_path / "p.png") as image:
        np.testing.assert_array_equal(plain(image), plain.open_and_apply(tmp_path / "p.png"))
        assert image.size == (60, 100)  # the caller's is left as it was
    clear = scene().convert("RGBA")
    clear.putalpha(0)
    assert (plain(clear) == 255).all()


def test_bytes_are_read_like_files(tmp_path, plain):
    scene().save(tmp_path / "p.png")
    data = (tmp_path / "p.png").read_bytes()
    np.testing.assert_array_equal(plain.open_and_apply(data), plain.open_and_apply(tmp_path / "p.png"))


def png_header(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (png_header(60000, 60000), "megapixels; the limit is 64"),
        (png_header(9000, 9000), r"has 9000x9000, 81 megapixels"),
        (b"<!doctype html><html>", "is not a photo: it is a web page"),
        (b"", "is an empty file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a photo"),
        (b"\xc5\xd0\xd3\xc6" + bytes(60), "is not a photo"),  # EPS with a head: it would start Ghostscript
        (b"\x80\x04\x95" + bytes(60), "is not a photo"),
    ],
)
def test_bombs_and_other_files_are_refused_before_a_pixel_is_decoded(plain, data, said):
    began = time.perf_counter()
    with pytest.raises(PhotoError, match=said):
        plain.open_and_apply(data, name="strange.jpg")
    assert time.perf_counter() - began < 1


def test_a_photo_that_was_cut_short_says_so(tmp_path, plain):
    (path,) = photos(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(PhotoError, match=r"photo_0000\.jpg ends too early"):
        plain.open_and_apply(path)


# ---------------------------------------------------------------- other ways to fit, and several views


def geometry(**more):
    return Geometry((32, 32), (32, 32), 2, (0.5,) * 3, (0.5,) * 3, **more)


def test_squash_crop_and_pad_do_what_they_say():
    disc = Image.new("RGB", (200, 100), "black")
    disc.paste("white", (60, 10, 140, 90))
    sides = {}
    for fit in ("squash", "crop", "pad"):
        seen = Transform(geometry().fitted(fit), fit).seen(disc)
        assert seen.size == (32, 32)
        white = np.asarray(seen)[..., 0] > 200
        sides[fit] = (white.any(axis=0).sum(), white.any(axis=1).sum())
    assert sides["squash"][1] > 1.7 * sides["squash"][0]  # half as wide
    assert abs(sides["crop"][0] - sides["crop"][1]) <= 2 and sides["crop"][0] > 25
    assert abs(sides["pad"][0] - sides["pad"][1]) <= 2 and 10 <= sides["pad"][0] <= 14
    padded = Transform(geometry().fitted("pad"), "pad")(disc)
    assert (
        np.abs(padded[:, :8]).max() < 0.01 and np.abs(padded[:, -8:]).max() < 0.01
    )  # the mean colour is zero


def test_an_unknown_fit_or_augmentation_lists_the_known_ones():
    with pytest.raises(UserError) as error:
        geometry().fitted("stretch")
    assert error.value.fix == "take one of: model, squash, crop, pad."
    with pytest.raises(UserError) as error:
        Transform(geometry()).views(scene(), "twist")
    assert error.value.fix == "take one of: none, flip, five_crop, ten_crop."


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("augment", VIEWS)
def test_views_are_as_many_as_promised_the_plain_one_first_and_mirrored_in_pairs(folders, kind, augment):
    transform = Transform.of(open_model(folders[kind]))
    views = transform.views(tiny_vit._picture("cat"), augment)
    assert len(views) == VIEWS[augment]
    assert all(view.shape == (3, 32, 32) and view.dtype == np.float32 for view in views)
    assert all(view.flags.c_contiguous for view in views)
    if augment in ("flip", "ten_crop"):
        half = len(views) // 2
        for one, mirrored in zip(views[:half], views[half:], strict=True):
            np.testing.assert_array_equal(one, mirrored[:, :, ::-1])
    if augment in ("none", "flip"):
        np.testing.assert_array_equal(views[0], transform(tiny_vit._picture("cat")))


def test_five_crops_show_the_middle_and_the_four_corners():
    corners = Image.new("RGB", (320, 320), "black")
    for left, top, colour in ((0, 0, "red"), (307, 0, "lime"), (0, 307, "blue"), (307, 307, "white")):
        corners.paste(colour, (left, top, left + 13, top + 13))
    middle, *found = Transform(geometry(), "model").views(corners, "five_crop")
    at = ((0, 0), (0, -1), (-1, 0), (-1, -1))
    colours = ((1, -1, -1), (-1, 1, -1), (-1, -1, 1), (1, 1, 1))
    for view, (row, column), colour in zip(found, at, colours, strict=True):
        np.testing.assert_allclose(view[:, row, column], colour, atol=0.2)
    assert all(np.allclose(middle[:, row, column], -1, atol=0.01) for row, column in at)


# ---------------------------------------------------------------- processors that are missing or strange


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"image_processor_type": "MobileViTImageProcessor"},
            "names the processor MobileViT, which fastsd does not know",
        ),
        ({"image_processor_type": "ViTImageProcessor", "do_resize": False}, "do_resize is off"),
        ({"image_processor_type": "ViTImageProcessor", "image_mean": [0.5]}, "1 channels"),
        ({"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 224}}, "without a crop"),
        (
            {"image_processor_type": "ViTImageProcessor", "size": {"height": 10**9, "width": 10**9}},
            "1000000000",
        ),
        ({"image_processor_type": "ViTImageProcessor", "size": 0}, "pixels"),
        ({"image_processor_type": "ViTImageProcessor", "image_std": [0, 0, 0]}, "divide"),
        ({"image_processor_type": "ViTImageProcessor", "resample": 77}, "resample"),
        (["ViT"], "holds no settings by name"),
    ],
)
def test_a_processor_that_is_not_understood_is_refused_by_name(tmp_path, settings, said):
    with pytest.raises(UserError, match=said) as error:
        Geometry.read(processor_of(tmp_path, settings), "vit")
    assert "prepared as ViT, DeiT, DINOv2, Swin or ConvNeXt" in error.value.fix


def test_a_model_without_a_processor_says_what_to_copy(tmp_path):
    with pytest.raises(UserError, match=r"it has no preprocessor_config\.json") as error:
        Geometry.read(tmp_path, "vit")
    assert error.value.fix.startswith("copy preprocessor_config.json from where the model comes from")
