"""Tags, comments and styles: what a prompt is made of besides its words."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.prompt_tags import NetworkWeights, network_weights, split_tags, without_comments
from fastsd_lib.generation.styles import Style, apply_styles, find_styles, read_styles, write_styles


def test_tags_are_taken_out_with_their_arguments_and_nothing_else_is():
    text, tags = split_tags("a <lora:light:0.5> cat <hypernet:x> <lyco:y:te=0.5:unet=1:dyn=8> <3 <b> a > b")
    assert text == "a  cat   <3 <b> a > b"
    assert [(tag.kind, tag.name, tag.positional, dict(tag.named)) for tag in tags] == [
        ("lora", "light", ("0.5",), {}),
        ("hypernet", "x", (), {}),
        ("lyco", "y", (), {"te": "0.5", "unet": "1", "dyn": "8"}),
    ]
    assert [tag.text for tag in tags][:2] == ["<lora:light:0.5>", "<hypernet:x>"]


@pytest.mark.parametrize(
    ("tag", "weights"),
    [
        ("<lora:x>", (1.0, 1.0, None)),
        ("<lora:x:0.5>", (0.5, 0.5, None)),
        ("<lora:x:0.5:0.7>", (0.5, 0.7, None)),  # text encoder, U-Net
        ("<lora:x:0.5:0.7:4>", (0.5, 0.7, 4)),
        ("<lora:x:te=0.5>", (0.5, 0.5, None)),
        ("<lora:x:unet=0.5>", (1.0, 0.5, None)),
        ("<lora:x:te=0.5:unet=1>", (0.5, 1.0, None)),
        ("<lora:x:0.2:te=0.5:dyn=8>", (0.5, 0.5, 8)),
        ("<lora:x:-1.5>", (-1.5, -1.5, None)),
    ],
)
def test_a_network_has_a_weight_for_each_half_of_the_model(tag, weights):
    assert network_weights(split_tags(tag)[1][0]) == NetworkWeights(*weights)


@pytest.mark.parametrize(
    "bad", ["<lora:x:strong>", "<lora:x:nan>", "<lora:x:1e9>", "<lora:x:0.5:unet=>", "<lora:x:>"]
)
def test_a_weight_that_is_no_number_is_named(bad):
    with pytest.raises(UserError, match="is no weight") as error:
        network_weights(split_tags(bad)[1][0])
    assert bad in error.value.message and "<lora:x:0.8>" in error.value.fix


def test_comments_are_left_out():
    assert without_comments("a # b\ncat") == "a \ncat"
    assert without_comments("a\n# whole line\ncat") == "a\ncat"
    assert without_comments("# first\na") == "\na"
    assert without_comments("a cat") == "a cat"


@given(st.text(st.sampled_from("<lora:x>#\n a=1"), max_size=50))
def test_no_prompt_raises_and_no_tag_is_left(prompt):
    text, tags = split_tags(without_comments(prompt))
    assert "#" not in text
    assert len(text) + sum(len(tag.text) for tag in tags) == len(without_comments(prompt))


@pytest.mark.parametrize(
    "text", ["<" * 99_999, "<a:" * 33_000, "<a:" * 33_000 + ">", "<" + "a" * 99_999, "#" * 99_999]
)
def test_a_hundred_thousand_signs_are_read_in_linear_time(text):
    began = time.process_time()
    split_tags(without_comments(text))
    assert time.process_time() - began < 2


# --- styles

TABLE = {
    style.name: style
    for style in (
        Style("photo", "photo of {prompt}, sharp", "painting"),
        Style("dark", "dark, moody"),
        Style("safe", "", "blood"),
        Style("nothing"),
    )
}


def test_styles_surround_the_prompt_or_follow_it_in_their_order():
    assert apply_styles("a cat", "dog", ["photo", "dark"], TABLE) == (
        "photo of a cat, sharp, dark, moody",
        "dog, painting",
        [],
    )
    assert apply_styles("a cat", "", ["dark", "photo"], TABLE)[0] == "photo of a cat, dark, moody, sharp"
    assert apply_styles("", "", ["dark", "safe"], TABLE) == ("dark, moody", "blood", [])


def test_styles_that_nobody_wrote_change_nothing_and_are_told():
    assert apply_styles("a", "b", ["no", "None", "", "nothing"], TABLE) == ("a", "b", ["no"])


@pytest.mark.parametrize("names", [["photo"], ["dark"], ["safe"], ["photo", "dark"], ["dark", "safe"], []])
def test_styles_are_found_again_in_the_prompts_they_made(names):
    prompt, negative, _ = apply_styles("a cat", "dog", names, TABLE)
    found, left, negative_left = find_styles(prompt, negative, TABLE)
    assert sorted(found) == sorted(names)
    if names == ["photo", "dark"]:
        assert found == names  # the one put in last is found first
    assert (left, negative_left) == ("a cat", "dog")


def test_half_a_style_is_not_found():
    assert find_styles("photo of a cat, sharp", "dog", TABLE) == ([], "photo of a cat, sharp", "dog")
    assert (
        find_styles("photo of , sharp", "painting", {"s": Style("s", "photo of a {prompt} a, sharp")})[0]
        == []
    )


def test_a_table_is_read_back_as_it_was_written_and_as_a1111_wrote_it(tmp_path):
    path = tmp_path / "styles.csv"
    styles = [Style("a", 'with "quotes", commas', "and\nlines"), Style("é猫", "{prompt}", "")]
    write_styles(path, styles)
    assert list(read_styles(path).values()) == styles
    path.write_text('\ufeffname,prompt,negative_prompt\nNone,,\nold, "a, b", c\n,x,y\n', encoding="utf-8")
    assert read_styles(path) == {"None": Style("None"), "old": Style("old", "a, b", "c")}
    path.write_text("name,text\nold,words\n", encoding="utf-8")
    assert read_styles(path) == {"old": Style("old", "words")}
    assert read_styles(tmp_path / "none.csv") == {}


@pytest.mark.parametrize(
    "content", [b"name,prompt\n\xff\xfe,x", b'name,prompt\na,"' + b"x" * 200_000, b"\x00" * 10]
)
def test_a_file_that_is_no_table_is_named_and_never_a_traceback(tmp_path, content):
    path = tmp_path / "styles.csv"
    path.write_bytes(content)
    try:
        assert read_styles(path) == {}
    except UserError as error:
        assert "styles.csv is no table of styles" in error.message and "negative_prompt" in error.fix
