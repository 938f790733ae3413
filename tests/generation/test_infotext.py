"""A1111's text: written to the letter, read to the letter, and from any file that a picture may be."""

from __future__ import annotations

import io
import json
import struct
import time
import zlib
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.infotext import ASSUMED, infotext, read_infotext, write_infotext
from fastsd_lib.generation.picture_text import picture_bytes, read_record, read_texts, save_picture
from fastsd_lib.generation.styles import Style

RECORD = {
    "prompt": "a cat,\nsitting", "negative_prompt": "dog", "inference_steps": 25, "sampler": "euler_a",
    "guidance_scale": 7.0, "seed": 3, "width_px": 512, "height_px": 768, "model": "sd15",
}  # fmt: skip


def test_the_keys_stand_in_a1111s_order_whatever_the_order_of_the_settings():
    settings = {
        "User": "me", "Lora hashes": "a: 1, b: 2", "Version": "v1.10.1", "Hires upscale": 2, "Clip skip": 2,
        "Size": "512x512", "Seed": 1, "CFG scale": 7.0, "Sampler": "Euler a", "Steps": 20, "Denoising strength": 0.7,
        "Model": "m", "Model hash": "abc", "Schedule type": "Karras", "VAE": "v.pt", "RNG": "CPU", "Mask blur": 4,
    }  # fmt: skip
    assert write_infotext("p", "n", settings) == (
        "p\nNegative prompt: n\n"
        "Steps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 7.0, Seed: 1, Size: 512x512, "
        "Model hash: abc, Model: m, VAE: v.pt, Denoising strength: 0.7, Clip skip: 2, RNG: CPU, "
        'Lora hashes: "a: 1, b: 2", Hires upscale: 2, Mask blur: 4, Version: v1.10.1, User: me'
    )


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, ""),
        (7.0, "Key: 7.0"),
        (7, "Key: 7"),
        (True, "Key: True"),
        ("Key", "Key"),
        ("a, b", 'Key: "a, b"'),
        ("a: b", 'Key: "a: b"'),
        ('a\n"é"', 'Key: "a\\n\\"é\\""'),
        ("plain text", "Key: plain text"),
    ],
)
def test_a_value_is_written_by_the_rules(value, written):
    assert write_infotext("", "", {"Key": value}) == written


USUAL = {
    "clip_skip": 1, "variation_seed": 5, "variation_strength": 0.0, "tiling": False, "strength": None,
    "noise_source": "gpu", "extra_parameters": {},
}  # fmt: skip


def last_line(**more) -> str:
    line = infotext(RECORD | USUAL | more).splitlines()[-1]
    start, end = "Steps: 25, Sampler: Euler a, ", ", Version: fastsd"
    assert line.startswith(start) and line.endswith(end)
    return line[len(start) : -len(end)]


def test_a_record_says_only_what_is_not_usual():
    usual = "CFG scale: 7.0, Seed: 3, Size: 512x768, Model: sd15"
    assert infotext(RECORD | USUAL) == infotext(RECORD)
    assert last_line() == usual
    assert last_line(schedule="karras") == f"Schedule type: Karras, {usual}"
    assert last_line(schedule="uniform") == f"Schedule type: Automatic, {usual}"  # its own
    assert last_line(
        clip_skip=2, variation_strength=0.5, tiling=True, noise_source="cpu", strength=0.75,
        seed_resize_from="64x32", extra_parameters={"Lora hashes": "a: 1"},
    ) == (
        f"{usual}, Variation seed: 5, Variation seed strength: 0.5, Seed resize from: 64x32, "
        'Denoising strength: 0.75, Clip skip: 2, RNG: CPU, Tiling: True, Lora hashes: "a: 1"'
    )  # fmt: skip


A1111 = """girl with an artist's beret, determined, ((eyeshadow)),
 second line
Negative prompt: ugly, (((deformed))), [blurry]
more of it
Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x768, Model hash: 45dee52b"""


def test_what_a1111_wrote_is_read_and_filled_up_with_what_it_assumes():
    found = read_infotext(A1111)
    assert found == ASSUMED | {
        "Prompt": "girl with an artist's beret, determined, ((eyeshadow)),\nsecond line",
        "Negative prompt": "ugly, (((deformed))), [blurry]\nmore of it",
        "Steps": "20", "Sampler": "Euler a", "CFG scale": "7", "Seed": "965400086", "Size-1": "512",
        "Size-2": "768", "Model hash": "45dee52b",
    }  # fmt: skip
    assert found["Clip skip"] == "1" and found["Masked area padding"] == 32 and found["RNG"] == "GPU"


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("just a prompt", "just a prompt"),
        ("a\nSteps: 20, Sampler: Euler", "a\nSteps: 20, Sampler: Euler"),  # two pairs are no settings
        ("Steps: 20, Sampler: Euler, Seed: 1", ""),
        ("", ""),
        ("Negative prompt: n\nSteps: 20, Sampler: Euler, Seed: 1", ""),
    ],
)
def test_three_pairs_make_a_last_line_the_settings(text, prompt):
    assert read_infotext(text)["Prompt"] == prompt


def test_empty_lines_before_the_first_word_are_no_part_of_a_prompt():
    found = read_infotext("a\n\nb\nNegative prompt:\n\nc\n\nd\nSteps: 1, Sampler: Euler, Seed: 2")
    assert (found["Prompt"], found["Negative prompt"]) == ("a\n\nb", "c\n\nd")


def test_quoted_values_sizes_and_empty_values():
    found = read_infotext(
        'p\nSteps: 1, Lora hashes: "a: 1, \\"b\\": 2", Hires resize: 8x9, Empty: , Bad: "x, Seed: 2'
    )
    assert found["Lora hashes"] == 'a: 1, "b": 2'
    assert (found["Hires resize-1"], found["Hires resize-2"]) == ("8", "9")
    assert "Empty" not in found and found["Bad"] == '"x' and found["Seed"] == "2"


def test_styles_hypernetworks_old_first_passes_and_civitais_flux_are_understood():
    table = {"photo": Style("photo", "photo of {prompt}", "painting")}
    line = "\nSteps: 1, Sampler: Euler, Seed: 2"
    found = read_infotext(f"photo of a cat\nNegative prompt: n, painting{line}", table)
    assert (found["Styles array"], found["Prompt"], found["Negative prompt"]) == (["photo"], "a cat", "n")
    assert "Styles array" not in read_infotext(f"a cat{line}", table)
    assert read_infotext(f"a{line}, Hypernet: h, Hypernet strength: 0.5")["Prompt"] == "a<hypernet:h:0.5>"
    old = read_infotext(f"a{line}, Size: 1024x768, First pass size: 512x384")
    assert [old[key] for key in ("Size-1", "Size-2", "Hires resize-1", "Hires resize-2")] == [
        512,
        384,
        1024,
        768,
    ]
    old = read_infotext(f"a{line}, Size: 1024x768, First pass size: 0x0")
    assert [old[key] for key in ("Size-1", "Size-2")] == [640, 448]
    flux = read_infotext("a\nSteps: 25, CFG scale: 3.5, Sampler: Undefined, Clip skip: 2, Seed: 1")
    assert {key: flux[key] for key in ("Sampler", "Schedule type", "CFG scale", "Distilled CFG Scale", "Clip skip")} == {
        "Sampler": "Euler", "Schedule type": "Simple", "CFG scale": "1", "Distilled CFG Scale": "3.5",
        "Clip skip": "1",
    }  # fmt: skip


WORDS = st.text(st.sampled_from('ab é猫(,:)"\\[]1x<>'), max_size=20).map(str.strip)
VALUES = WORDS.filter(lambda text: text and not text.startswith('"') and ("x" not in text)) | st.integers(
    0, 2**32
)
KEYS = (
    st.text(st.sampled_from("ABcd -/"), min_size=3, max_size=9)
    .map(str.strip)
    .filter(lambda k: k[:1].isalpha())
)


@given(
    st.lists(WORDS.filter(bool), max_size=3),
    st.lists(WORDS.filter(bool), max_size=3),
    st.dictionaries(KEYS.filter(lambda key: len(key) > 1), VALUES, max_size=6),
)
def test_what_is_written_is_read_again(prompt, negative, more):
    settings = {"Steps": 20, "Sampler": "Euler a", "Seed": 1} | more
    settings = {key: value for key, value in settings.items() if str(value) != key}  # "Key" alone is no pair
    found = read_infotext(write_infotext("\n".join(prompt), "\n".join(negative), settings))
    assert found["Prompt"] == "\n".join(prompt)
    assert found["Negative prompt"] == "\n".join(negative)
    assert {key: found[key] for key in settings} == {key: str(value) for key, value in settings.items()}


@given(st.text(max_size=200))
def test_any_text_is_read(text):
    found = read_infotext(text)
    assert set(ASSUMED) <= set(found)


@pytest.mark.parametrize(
    "text",
    ["a" * 300_000, "ab:" * 100_000, 'ab: "' * 60_000, 'ab: "\\",' * 40_000, "a, " * 100_000, " " * 300_000 + "x",
     "\n" * 300_000, ":" * 300_000, 'ab: "' + "\\" * 300_000],
)  # fmt: skip
def test_long_texts_are_read_in_linear_time(text):
    began = time.process_time()
    read_infotext(text)
    assert time.process_time() - began < 3


# --- picture files


def a_picture(prompt: str = "a cat, 猫 é") -> SimpleNamespace:
    """What the engine gives, without the engine's seconds."""
    record = RECORD | {"prompt": prompt, "width_px": 16, "height_px": 16}
    return SimpleNamespace(image=Image.new("RGB", (16, 16), "red"), seed=3, record=record)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".avif", ".PNG"])
@pytest.mark.parametrize("prompt", ["a cat", "a cat, 猫 é 🐱", "é"])
def test_every_format_carries_the_text_and_the_record(tmp_path, suffix, prompt):
    picture = a_picture(prompt)
    path = save_picture(picture, tmp_path / f"x{suffix}")
    assert read_record(path) == picture.record
    assert read_texts(path)["parameters"] == infotext(picture.record)
    assert read_texts(path.read_bytes()) == read_texts(path)
    with Image.open(path) as image:
        assert image.size == (16, 16)


def test_the_exif_comment_is_the_one_that_a1111_writes_and_reads(tmp_path):
    """UserComment in the Exif IFD, "UNICODE" and big-endian UTF-16; as PNG, one tEXt chunk."""
    path = save_picture(a_picture(), tmp_path / "x.jpg")
    with Image.open(path) as image:
        comment = image.getexif().get_ifd(0x8769)[0x9286]
    assert comment == b"UNICODE\0" + infotext(read_record(path)).encode("utf-16-be")
    with Image.open(save_picture(a_picture("a cat"), tmp_path / "x.png")) as image:
        assert image.info["parameters"].startswith("a cat\nNegative prompt: dog\nSteps: 25")


@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + "a cat, 猫\nSteps: 1".encode("utf-16-le"),
        b"UNICODE\0" + "\ufeffa cat, 猫\nSteps: 1".encode("utf-16-be"),
        b"ASCII\0\0\0" + "a cat, 猫\nSteps: 1".encode(),
        b"\0" * 8 + "a cat, 猫\nSteps: 1".encode(),
    ],
)
def test_the_comments_of_other_writers_are_read(comment):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = comment
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", exif=exif)
    assert read_texts(file.getvalue()) == {"parameters": "a cat, 猫\nSteps: 1"}


def test_a_gif_says_its_comment():
    file = io.BytesIO()
    Image.new("P", (8, 8)).save(file, "GIF", comment=b"a cat\nSteps: 1")
    assert read_texts(file.getvalue()) == {"parameters": "a cat\nSteps: 1"}


def test_a_long_prompt_leaves_the_record_out_of_a_jpeg_and_a_longer_one_is_refused(tmp_path):
    path = save_picture(a_picture("a " * 12_000), tmp_path / "x.jpg")
    assert read_record(path) is None and read_texts(path)["parameters"].startswith("a a a")
    with pytest.raises(UserError, match="too long to be kept in a JPEG") as error:
        save_picture(a_picture("a " * 40_000), tmp_path / "y.jpg")
    assert "PNG" in error.value.fix and not (tmp_path / "y.jpg").exists()
    with pytest.raises(UserError, match=r"x\.txt is no name for a picture"):
        save_picture(a_picture(), tmp_path / "x.txt")


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_half_a_letter_in_a_prompt_costs_no_picture(tmp_path, suffix):
    path = save_picture(a_picture("a \ud800 cat"), tmp_path / f"x{suffix}")
    assert read_texts(path)["parameters"].startswith("a ? cat")
    assert read_record(path)["prompt"] == "a ? cat"


@pytest.mark.parametrize("error", [RuntimeError("x"), SyntaxError("x"), struct.error("x"), MemoryError("x")])
def test_however_a_decoder_fails_it_is_a_sentence(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(UserError, match="no picture that can be read"):
        read_texts(SAMPLES["JPEG"])


def test_the_speed_of_packing_can_be_chosen():
    image = Image.effect_noise((256, 256), 50)
    assert len(picture_bytes(image, "PNG", "a", compress_level=9)) < len(
        picture_bytes(image, "PNG", "a", compress_level=0)
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def test_packed_and_international_text_and_text_behind_the_pixels_is_read():
    assert read_texts(
        png(
            chunk(b"tEXt", b"one\0caf\xe9"),
            chunk(b"IDAT", zlib.compress(b"\0\0\0\0")),
            chunk(b"zTXt", b"two\0\0" + zlib.compress(b"packed")),
            chunk(b"iTXt", b"three\0\0\0en\0drei\0" + "猫".encode()),
            chunk(b"iTXt", b"four\0\1\0\0\0" + zlib.compress("猫".encode())),
            chunk(b"tEXt", "five\0猫".encode()),
        )
    ) == {"one": "café", "two": "packed", "three": "猫", "four": "猫", "five": "猫"}


def test_a_text_that_unpacks_to_gigabytes_is_cut_and_a_torn_file_says_what_it_can():
    bomb = zlib.compress(b"a" * (64 << 20))
    texts = read_texts(
        png(*[chunk(b"zTXt", b"b%d\0\0" % n + bomb) for n in range(9)], chunk(b"tEXt", b"x\0y"))
    )
    assert sum(map(len, texts.values())) <= 16 << 20
    whole = png(chunk(b"tEXt", b"one\0two"), chunk(b"tEXt", b"three\0four"))
    for end in range(8, len(whole)):
        assert set(read_texts(whole[:end])) <= {"one", "three"}
    assert read_texts(png(b"\xff\xff\xff\xfftEXt", chunk(b"tEXt", b"one\0two"))) == {}


@given(st.binary(max_size=300), st.sampled_from(["", "PNG", "JPEG", "WEBP", "GIF", "AVIF"]), st.data())
def test_any_bytes_are_read_or_refused_in_a_sentence(noise, kind, data):
    if kind:
        whole = bytearray(SAMPLES[kind])
        for byte in noise[:40]:
            whole[data.draw(st.integers(0, len(whole) - 1))] = byte
        noise = bytes(whole)
    try:
        assert all(isinstance(text, str) for text in read_texts(noise).values())
    except UserError as error:
        assert "PNG" in error.fix


SAMPLES = {
    kind: picture_bytes(Image.new("RGB", (8, 8)), kind, "a cat\nSteps: 1", {"a": 1})
    for kind in ("PNG", "JPEG", "WEBP", "AVIF")
}
SAMPLES["GIF"] = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\xff\xff\xff\x00\x00\x00!\xfe\x05a cat\x00;"


@pytest.mark.parametrize("text", ["[1]", "{", "[" * 100_000, "1" * 10_000, '"x"'])
def test_a_record_that_is_none_is_none(tmp_path, text):
    info = PngImagePlugin.PngInfo()
    info.add_text("fastsd", text)
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png", pnginfo=info)
    assert read_record(tmp_path / "x.png") is None
    assert json.loads('{"a": 1}') == {"a": 1}


def test_no_picture_is_named_with_a_way_out(tmp_path):
    (tmp_path / "x.png").write_bytes(b"hello")
    with pytest.raises(UserError, match=r"x\.png: no picture that can be read") as error:
        read_texts(tmp_path / "x.png")
    assert "PNG, JPEG" in error.value.fix
    with pytest.raises(UserError, match="No such file"):
        read_texts(tmp_path / "none.png")
    with (tmp_path / "big.png").open("wb") as file:
        file.truncate(300 << 20)
    with pytest.raises(UserError, match="300 MB"):
        read_texts(tmp_path / "big.png")
