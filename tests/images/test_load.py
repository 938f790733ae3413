"""Rows 1 to 20 of the table of bad photos: each opens right, or is refused with its code and a plain sentence."""

from __future__ import annotations

import io
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from fastsd_lib.images.load import PhotoError, PhotoLimits, open_photo, read_photo


def gradient(width=160, height=100):
    down, across = np.mgrid[0:height, 0:width]
    pixels = np.stack([0 * down + 40, 40 + 180 * across // width, 60 + 150 * down // height], axis=2)
    pixels[: height // 4, : width // 4] = (220, 20, 20)
    return Image.fromarray(pixels.astype(np.uint8))


def difference(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).mean())


def saved(image, path, **options):
    image.save(path, **options)
    return path


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing: what a bomb looks like before it is decoded."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_every_exif_orientation_comes_out_upright_and_without_the_tag(tmp_path, orientation, suffix):
    upright = gradient()
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_photo(saved(stored, tmp_path / f"p{suffix}", exif=exif, quality=95))
    assert opened.size == upright.size
    assert difference(opened, upright) < 6
    assert not opened.getexif()


def test_a_cmyk_jpeg_keeps_its_colours(tmp_path):
    opened = open_photo(saved(gradient().convert("CMYK"), tmp_path / "p.jpg", quality=95))
    assert opened.mode == "RGB"
    assert difference(opened, gradient()) < 8


def test_a_profile_other_than_srgb_is_applied(tmp_path):
    """Lab coordinates of each pixel are the second witness: the profile's own conversion to Lab."""
    linear = swapped_profile()
    path = saved(gradient(), tmp_path / "p.png", icc_profile=linear)
    expected = ImageCms.profileToProfile(
        gradient(), io.BytesIO(linear), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert difference(expected, gradient()) > 5
    assert difference(open_photo(path), expected) == 0


def swapped_profile() -> bytes:
    """An sRGB profile whose red and green primaries changed places: no eye could miss it."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", data[128:132])[0]
    at = {bytes(data[132 + 12 * n : 136 + 12 * n]): 136 + 12 * n for n in range(count)}
    red, green = at[b"rXYZ"], at[b"gXYZ"]
    data[red : red + 8], data[green : green + 8] = data[green : green + 8], data[red : red + 8]
    return bytes(data).replace(b"s\0R\0G\0B", b"w\0i\0d\0e").replace(b"\0s\0R\0G\0B", b"\0w\0i\0d\0e")


def test_a_damaged_profile_costs_a_note_not_the_photo(tmp_path):
    photo = read_photo(saved(gradient(), tmp_path / "p.png", icc_profile=b"no profile" * 20))
    assert difference(photo.image, gradient()) == 0
    assert any("profile" in note for note in photo.notes)


def test_16_bit_grey_is_scaled_not_clipped_to_white(tmp_path):
    ramp = np.tile(np.linspace(0, 65535, 100).astype(np.uint16), (80, 1))
    opened = np.asarray(open_photo(saved(Image.fromarray(ramp), tmp_path / "p.png")))
    assert opened.shape == (80, 100, 3)
    assert np.array_equal(opened[0, :, 0], np.floor(ramp[0] / 257.0 + 0.5))


@pytest.mark.parametrize("background", [(255, 255, 255), (10, 200, 30)])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_parts_show_the_background_not_what_was_hidden(tmp_path, mode, background):
    image = Image.new("RGBA", (80, 80), (90, 90, 90, 0))
    image.paste((90, 90, 90, 255), (0, 0, 40, 80))
    if mode == "PA":
        image = image.quantize(4)
    path = saved(image if mode == "PA" else image.convert(mode), tmp_path / "p.png")
    opened = open_photo(path, background)
    assert opened.getpixel((60, 40)) == background
    assert opened.getpixel((20, 40)) == (90, 90, 90)


@pytest.mark.parametrize(
    ("values", "middle"),
    [
        (np.tile(np.linspace(0, 1, 80), (80, 1)).astype(np.float32), 127),
        (np.tile(np.linspace(0, 255, 80), (80, 1)).astype(np.float32), 127),
        (np.tile(np.linspace(-300, 700, 80), (80, 1)).astype(np.float32), 127),
        (np.tile(np.linspace(0, 60000, 80), (80, 1)).astype(np.int32), 116),
    ],
    ids=["0 to 1", "0 to 255", "any range", "32-bit whole numbers"],
)
def test_float_and_32_bit_grey_are_scaled_by_their_range(tmp_path, values, middle):
    opened = np.asarray(open_photo(saved(Image.fromarray(values), tmp_path / "p.tif")))
    assert opened[0, 0, 0] == 0
    assert abs(int(opened[0, 39:41, 0].mean()) - middle) <= 1


def test_numbers_that_are_none_are_black_with_a_note_and_a_picture_of_them_is_refused(tmp_path):
    values = np.tile(np.linspace(0, 1, 80), (80, 1)).astype(np.float32)
    values[:4] = np.nan
    photo = read_photo(saved(Image.fromarray(values), tmp_path / "some.tif"))
    assert photo.image.getpixel((79, 0)) == (0, 0, 0)
    assert any("not numbers" in note for note in photo.notes)
    with pytest.raises(PhotoError) as refusal:
        open_photo(saved(Image.fromarray(np.full((80, 80), np.nan, np.float32)), tmp_path / "all.tif"))
    assert refusal.value.code == "damaged"


def in_mode(mode: str) -> Image.Image:
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(gradient(), srgb, lab, outputMode="LAB")
    return gradient().quantize(256) if mode == "P" else gradient().convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("1", ".png"),
        ("L", ".png"),
        ("L", ".jpg"),
        ("P", ".png"),
        ("P", ".gif"),
        ("LAB", ".tif"),
        ("RGBX", ".tif"),
    ],
)
def test_every_mode_that_files_hold_becomes_rgb(tmp_path, mode, suffix):
    opened = open_photo(saved(in_mode(mode), tmp_path / f"p{suffix}"))
    assert (opened.mode, opened.size) == ("RGB", (160, 100))
    expected = in_mode(mode).convert("RGB") if mode in {"1", "L"} else gradient()
    assert difference(opened, expected) < 8


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_of_an_animation_the_first_frame_is_used_and_said(tmp_path, suffix):
    frames = [Image.new("RGB", (80, 80), colour) for colour in ["red", "green", "blue"]]
    photo = read_photo(saved(frames[0], tmp_path / f"p{suffix}", save_all=True, append_images=frames[1:]))
    red, green, blue = photo.image.getpixel((40, 40))
    assert red > 200 and green < 30 and blue < 30
    assert any("the first of 3 is used" in note for note in photo.notes)


@pytest.mark.parametrize("suffix", [".heic", ".avif", ".jp2", ".bmp", ".webp", ".tga", ".ppm"])
def test_other_formats_open(tmp_path, suffix):
    if suffix == ".heic":
        import pillow_heif

        pillow_heif.register_heif_opener()
    opened = open_photo(saved(gradient(), tmp_path / f"p{suffix}"))
    assert opened.size == (160, 100)
    assert difference(opened, gradient()) < 8


def test_without_its_plugin_a_heic_photo_is_refused_by_the_plugins_name(tmp_path, monkeypatch):
    import pillow_heif

    pillow_heif.register_heif_opener()
    path = saved(gradient(), tmp_path / "p.heic")
    monkeypatch.setitem(
        sys.modules, "pillow_heif", None
    )  # what Python itself does for a module that is barred
    with pytest.raises(PhotoError) as refusal:
        open_photo(path)
    assert refusal.value.code == "needs_plugin"
    assert "pillow-heif" in refusal.value.message
    assert "python3 -m fastsd_lib install core" in refusal.value.fix


def heic_with_16_bytes():
    return b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


JPEG = io.BytesIO()
gradient(400, 300).save(JPEG, "JPEG", quality=90)
PNG = io.BytesIO()
gradient(400, 300).save(PNG, "PNG")

REFUSED = {
    "truncated.jpg": (JPEG.getvalue()[:-2000], "truncated", "a part of the JPEG is missing"),
    "truncated.png": (
        PNG.getvalue()[: len(PNG.getvalue()) // 2],
        "truncated",
        "a part of the PNG is missing",
    ),
    "only-a-start.jpg": (JPEG.getvalue()[:20], "", "only-a-start.jpg"),
    "bomb.png": (png_header(10_000, 10_000), "too_large", "100 megapixels; the limit is 64"),
    "big-bomb.png": (png_header(14_000, 14_000), "too_large", "the limit is 64"),
    "empty.jpg": (b"", "empty", "is an empty file"),
    "text.jpg": (b"Hello, this is no photo.\n", "not_a_picture", "it is a text file"),
    "page.jpg": (b"\n<!DOCTYPE html><html>Quota exceeded", "not_a_picture", "it is a web page"),
    "drawing.svg": (b'<?xml version="1.0"?><svg width="9">', "not_a_picture", "it is an SVG drawing"),
    "paper.pdf": (b"%PDF-1.7 ...", "not_a_picture", "it is a PDF document"),
    "film.jpg": (b"\0\0\0\x18ftypmp42\0\0\0\0isom", "not_a_picture", "it is an MP4 video"),
    "more.png": (b"PK\3\4rest of it", "not_a_picture", "it is a zip archive"),
    "noise.jpg": (bytes(range(1, 32)) * 9, "not_a_picture", "it is a file of an unknown kind"),
    "half.heic": (heic_with_16_bytes(), "damaged", "half.heic"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_whole_photo_is_refused_in_plain_words(tmp_path, name):
    data, code, words = REFUSED[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(PhotoError) as refusal:
        open_photo(path)
    assert refusal.value.code == code or not code
    assert name in refusal.value.message and words in refusal.value.message
    assert refusal.value.fix
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    ("size", "code"),
    [((1, 1), "too_small"), ((63, 200), "too_small"), ((64, 513), "too_long"), ((600, 64), "too_long")],
)
def test_too_small_and_too_long_photos_are_refused_and_the_limits_can_be_set(tmp_path, size, code):
    path = saved(Image.new("RGB", size, "red"), tmp_path / "p.png")
    with pytest.raises(PhotoError) as refusal:
        open_photo(path)
    assert refusal.value.code == code
    assert f"{size[0]}x{size[1]}" in refusal.value.message
    assert read_photo(path, limits=PhotoLimits(min_side_px=1, max_aspect=1e9)).image.size == size


def test_a_photo_at_the_limits_opens(tmp_path):
    assert open_photo(saved(Image.new("RGB", (64, 512)), tmp_path / "p.png")).size == (64, 512)


def test_a_wrong_suffix_does_not_matter(tmp_path):
    photo = read_photo(saved(gradient(), tmp_path / "p.jpg", format="PNG"))
    assert photo.kind == "PNG"
    assert difference(photo.image, gradient()) == 0


def test_nothing_of_the_metadata_is_left(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "at home"
    exif.get_ifd(0x8825)[1] = "N"
    path = saved(gradient(), tmp_path / "p.jpg", exif=exif, comment=b"secret")
    again = io.BytesIO()
    for form in ("PNG", "JPEG"):
        again = io.BytesIO()
        open_photo(path).save(again, form)
        assert b"secret" not in again.getvalue() and b"at home" not in again.getvalue()
        assert b"Exif" not in again.getvalue() and b"eXIf" not in again.getvalue()


def test_a_picture_of_one_colour_is_noted(tmp_path):
    assert any(
        "same colour" in note
        for note in read_photo(saved(Image.new("RGB", (80, 80)), tmp_path / "p.png")).notes
    )


def test_a_large_jpeg_is_brought_down_while_it_is_decoded(tmp_path):
    photo = read_photo(saved(gradient(1600, 1000), tmp_path / "p.jpg", quality=95), max_side_px=820)
    assert photo.image.size == (800, 500)
    assert any("800x500" in note for note in photo.notes)
    assert difference(photo.image, gradient(800, 500)) < 4


def test_missing_files_folders_and_pipes_are_refused_without_waiting(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.png")
    for path, code in [
        (tmp_path / "no.png", "missing"),
        (tmp_path, "not_a_file"),
        (tmp_path / "pipe.png", "not_a_file"),
    ]:
        with pytest.raises(PhotoError) as refusal:
            open_photo(path)
        assert refusal.value.code == code


def test_control_characters_in_a_name_never_reach_the_terminal(tmp_path):
    path = tmp_path / "a\x1b[31m\n.jpg"
    path.write_bytes(b"")
    with pytest.raises(PhotoError) as refusal:
        open_photo(path)
    assert "\x1b" not in str(refusal.value) and "\n" not in refusal.value.message
