from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsd_lib.core.errors import UserError
from fastsd_lib.images.captions import (
    add_to_captions,
    caption_from_filename,
    check_captions,
    decode_caption,
    has_caption,
    least_tokens,
    propose_caption,
    read_caption,
    replace_in_captions,
    training_prompt,
    write_caption,
)

# What a name or caption can bring: words, counters, escapes, bidi controls, joiners, combining marks, emoji.
LETTERS = "abcIMGdsc0123456789 _-()~.,\n\t\0\x1b[m\u200b\u202e\u200d\u0301\ufeffßкот猫🐈"

NAMED_BY_PEOPLE = {
    "phtmejhn (1)": "phtmejhn",
    "mafk4 smiling": "mafk4 smiling",
    "a man driving a car (2)": "a man driving a car",
    "phtmejhn-(12)": "phtmejhn",
    "a-man-driving-a-car-(2)": "a man driving a car",
    "a_man_driving_a_car_02": "a man driving a car",
    "sks cat on a sofa": "sks cat on a sofa",
    "cat_01": "cat",
    "cat-3": "cat",
    "cat 007": "cat",
    "Boeing 747": "Boeing 747",
    "t-shirt": "t-shirt",
    "zwx person - Copy": "zwx person",
    "zwx person - Copy (2)": "zwx person",
    "кот на диване (3)": "кот на диване",
    "猫~1a2b3c4d": "猫",
    "image of a cat": "image of a cat",
    "photo of zwx": "photo of zwx",
    "portrait of r2d2": "portrait of r2d2",
    "picnic": "picnic",
    "IMG model cat": "IMG model cat",
    "deface": "deface",
    "photo 2 cats": "photo 2 cats",
    "sam (1)": "sam",
    "sam and max": "sam and max",
    "capture the flag 2": "capture the flag 2",
    "photo on day 3": "photo on day 3",
}

NAMED_BY_MACHINES = [
    "IMG_1234", "IMG-20240131-WA0007", "img1234 (2)", "DSC00012", "DSC_0042", "DSCN1234", "P1010123",
    "PXL_20240131_123456789", "PXL_20240131_123456789.MP", "PXL_20240131_123456789.PORTRAIT", "MVIMG_20180101_1234",
    "WhatsApp Image 2024-01-31 at 12.34.56", "Screenshot 2024-01-31 at 12.34.56", "Screenshot_20240131-123456_Chrome",
    "Screen Shot 2020-01-01 at 1.02.03 PM", "20240131_123456", "2024-01-31 12.34.56", "1", "0001", "(3)",
    "d41d8cd98f00b204e9800998ecf8427e", "550e8400-e29b-41d4-a716-446655440000", "FB_IMG_1700000000000",
    "received_1234567890", "signal-2024-01-31-123456", "photo_2024-01-31_12-34-56", "image", "image (3)",
    "download (1)", "unnamed", "photo~0badcafe", "Photo on 31-01-2024 at 12.34", "GOPR0123", "DJI_0123", "",
    "_MG_1234", "mmexport1700000000000", "EzQ8dXkWQAAb3fK9", "Untitled", "scan0001",
]  # fmt: skip


@pytest.mark.parametrize("stem", NAMED_BY_PEOPLE)
def test_words_that_people_wrote_become_the_caption(stem):
    assert caption_from_filename(stem) == NAMED_BY_PEOPLE[stem]


@pytest.mark.parametrize("stem", NAMED_BY_MACHINES)
def test_names_that_machines_gave_say_nothing(stem):
    assert caption_from_filename(stem) == ""


@given(st.text(LETTERS, max_size=80))
def test_a_caption_from_any_name_is_one_visible_line_and_parsing_is_repeatable(stem):
    caption = caption_from_filename(stem)
    assert caption == caption_from_filename(stem)
    assert caption == caption.strip() and "\n" not in caption
    assert not any(unicodedata.category(letter) == "Cc" for letter in caption)


@given(
    st.lists(st.from_regex(r"[a-z]{3,9}[0-9]?", fullmatch=True), min_size=2, max_size=6), st.integers(1, 999)
)
def test_every_word_survives_with_its_digits_and_only_the_counter_goes(words, number):
    sentence = "sks " + " ".join(words)
    assert caption_from_filename(f"{sentence} ({number})") == sentence
    assert caption_from_filename(sentence.replace(" ", "_") + f"_{number}") == sentence


@pytest.mark.parametrize(
    ("data", "caption", "warned"),
    [
        (b"\xef\xbb\xbfa cat", "a cat", False),
        ("a cat ü".encode("utf-16"), "a cat ü", False),
        (b"\xfe\xff" + "a cat".encode("utf-16-be"), "a cat", False),
        ("a cat".encode("utf-16-le"), "a cat", False),
        ("a cat".encode("utf-16-be"), "a cat", False),
        ("café".encode("latin-1"), "caf\ufffd", True),
        (b"a\0 \x1b[31mred\x1b[0m\xe2\x80\x8b cat\r\n\ton a  sofa", "a red cat on a sofa", False),
        (b"  \n", "", False),
        (b"{braces} %s 100% (red:1.2)", "{braces} %s 100% (red:1.2)", False),
    ],
)
def test_captions_are_read_in_any_encoding_as_one_clean_line(data, caption, warned):
    text, warning = decode_caption(data)
    assert text == caption
    assert bool(warning) == warned


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reading_of_a_caption(data):
    text, _ = decode_caption(data)
    assert "\0" not in text and "\x1b" not in text and "\n" not in text


@given(st.text(LETTERS, max_size=100))
def test_what_is_written_is_read_back(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("captions")
    stored = write_caption(folder, folder / "cat.jpg", text)
    assert read_caption(folder, folder / "cat.jpg") == stored


def test_an_endless_caption_is_refused_on_reading_and_on_writing(tmp_path):
    (tmp_path / "cat.txt").write_text("x" * 65_537)
    with pytest.raises(UserError, match="larger than 64 kB") as error:
        read_caption(tmp_path, tmp_path / "cat.jpg")
    assert error.value.fix == "write one sentence into it."
    with pytest.raises(UserError, match="larger than 64 kB"):
        write_caption(tmp_path, tmp_path / "dog.jpg", "y" * 65_537)
    assert not (tmp_path / "dog.txt").exists()


def test_a_caption_left_empty_on_purpose_is_a_caption(tmp_path):
    assert not has_caption(tmp_path, tmp_path / "cat.jpg")
    write_caption(tmp_path, tmp_path / "cat.jpg", "  ")
    assert has_caption(tmp_path, tmp_path / "cat.jpg")
    assert read_caption(tmp_path, tmp_path / "cat.jpg") == ""


def test_the_training_prompt_joins_prompt_and_caption_and_formats_nothing():
    assert training_prompt("photo of sks cat", "on a sofa") == "photo of sks cat, on a sofa"
    assert training_prompt("photo of sks cat", "") == "photo of sks cat"
    assert training_prompt("photo of sks cat", "Photo of sks cat, asleep") == "Photo of sks cat, asleep"
    assert training_prompt("{a} %s", "{b}") == "{a} %s, {b}"


def test_a_name_that_says_no_more_than_the_prompt_is_not_proposed(tmp_path):
    assert propose_caption(tmp_path / "phtmejhn (1).jpg", "photo of phtmejhn person") == ""
    assert (
        propose_caption(tmp_path / "phtmejhn smiling.jpg", "photo of phtmejhn person") == "phtmejhn smiling"
    )
    assert propose_caption(tmp_path / "IMG_1234.jpg", "photo of sks cat") == ""


def test_bulk_edits_say_what_changed_so_that_it_can_be_undone(tmp_path):
    photos = [tmp_path / "a.jpg", tmp_path / "b.jpg", tmp_path / "c.jpg"]
    for photo, text in zip(photos, ["a red cat", "a red.*", "green"], strict=True):
        write_caption(tmp_path, photo, text)
    changed = replace_in_captions(tmp_path, photos, "red", "blue")
    assert changed == {"a.jpg": ("a red cat", "a blue cat"), "b.jpg": ("a red.*", "a blue.*")}
    assert add_to_captions(tmp_path, photos[:1], prefix="sketch, ", suffix=", 2024") == {
        "a.jpg": ("a blue cat", "sketch, a blue cat, 2024")
    }
    assert add_to_captions(tmp_path, photos[:1], prefix="sketch, ", suffix=", 2024") == {}
    with pytest.raises(UserError, match="Nothing to find"):
        replace_in_captions(tmp_path, photos, "", "x")


def test_a_caption_that_cannot_be_read_stops_a_bulk_edit_before_anything_is_written(tmp_path):
    photos = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    write_caption(tmp_path, photos[0], "red")
    (tmp_path / "b.txt").write_text("x" * 70_000)
    with pytest.raises(UserError):
        replace_in_captions(tmp_path, photos, "red", "blue")
    assert read_caption(tmp_path, photos[0]) == "red"


def test_captions_and_photos_without_each_other_are_listed(tmp_path):
    for name in ("cat.txt", "CAT.txt", "lost.txt", ".hidden.txt"):
        (tmp_path / name).write_text("x")
    check = check_captions(tmp_path, [tmp_path / "cat.jpg", tmp_path / "dog.png"])
    assert check.without_photo == ("lost.txt",)
    assert check.without_caption == ("dog.png",)
    assert check.several == ("cat.jpg",)


@pytest.fixture(scope="module")
def clip_tokenizer():
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    from fastsd_lib.models.registry import EMBEDDED_FOLDER

    return CLIPTokenizer.from_pretrained(EMBEDDED_FOLDER / "tokenizer")


@given(st.text("abc's stdrevm1290 _-.,;!()é", max_size=60))
def test_the_least_number_of_tokens_is_never_more_than_clips_own(clip_tokenizer, prompt):
    real = len(clip_tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids)
    assert least_tokens(prompt) <= real


def test_words_that_clip_knows_are_counted_exactly(clip_tokenizer):
    for prompt, count in (("a photo of a monster", 5), ("a photo of a monster, a monster", 8)):
        assert (
            least_tokens(prompt) == len(clip_tokenizer(prompt, add_special_tokens=False).input_ids) == count
        )
    assert least_tokens("the cat's toy isn't here") == 7  # CLIP's own vocabulary: the cat 's toy isn 't here
