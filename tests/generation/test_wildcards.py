"""Random prompts: the same for a seed, as likely as they say, and never without end."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.wildcards import expand, read_wildcards

ANIMALS = {
    "animal": ["cat", "dog", "{red|blue} __bird__"],
    "bird": ["owl"],
    "colour/warm": ["red"],
    "empty": [],
}


def many(prompt: str, count: int = 400, wildcards=ANIMALS) -> Counter[str]:
    return Counter(expand(prompt, seed, wildcards)[0] for seed in range(count))


def test_a_seed_makes_the_same_choices_on_every_machine():
    # Written down once: another machine, another Python, next year.
    assert [expand("a {red|blue|green} __animal__", seed, ANIMALS)[0] for seed in range(5)] == EXPECTED


EXPECTED = ["a green red owl", "a red blue owl", "a green red owl", "a red dog", "a red cat"]


def test_every_option_is_drawn_about_as_often_as_its_weight_says():
    drawn = many("{a|b|2::c}", 4000)
    assert set(drawn) == {"a", "b", "c"}
    assert abs(drawn["a"] - 1000) < 150 and abs(drawn["b"] - 1000) < 150 and abs(drawn["c"] - 2000) < 200
    assert set(many("{a|0::b}")) == {"a"}
    assert set(many("{0::a|0::b}")) <= {"a", "b"}


def test_wildcards_stand_in_wildcards_and_in_braces():
    assert set(many("__animal__")) == {"cat", "dog", "red owl", "blue owl"}
    assert set(many("{__bird__|x}")) == {"owl", "x"}
    assert set(many("__colour/*__ __b*__")) == {"red owl"}


def test_several_different_options_are_joined_as_told():
    assert set(many("{2$$a|b|c}")) == {f"{one}, {other}" for one in "abc" for other in "abc" if one != other}
    assert set(many("{a [x|b}")) == {"a [x", "b"}  # a bracket that is never closed is a character
    assert set(many("{2$$+$$ a | b }")) == {"a+b", "b+a"}
    assert set(many("{2$$ and $$a|b}")) == {"a and b", "b and a"}
    assert {len(text.split("+")) for text in many("{1-3$$+$$a|b|c}")} == {1, 2, 3}
    assert {len(text.split(", ")) for text in many("{-2$$a|b|c}") if text} == {1, 2}
    assert {len(text.split(", ")) for text in many("{9$$a|b|c}")} == {3}
    assert set(many("{{a|b}|{c|d}}")) == {"a", "b", "c", "d"}
    assert set(many("{|a}")) == {"", "a"}


@pytest.mark.parametrize(
    "prompt",
    [
        "a cat",
        "{a}",
        "a {b",
        "a } b {",
        "[a|b:3]",
        "[{a|b[:.5]",
        r"\{a\|b\}",
        "__no__",
        "__",
        "__empty__",
        "a__b",
        "{}",
    ],
)
def test_what_leaves_no_choice_stays_as_it_is(prompt):
    assert set(many(prompt, 5)) == {prompt}


def test_the_alternation_of_a_prompt_is_left_to_the_prompt():
    assert set(many("{a [x|y]|b}")) == {"a [x|y]", "b"}
    assert set(many("[{a|b}|c]")) == {"[a|c]", "[b|c]"}


def test_unknown_wildcards_are_told_once():
    assert expand("__no__ __animal__ __no__", 1, {"animal": ["cat"]}) == ("__no__ cat __no__", ["no"])


@pytest.mark.parametrize(
    ("wildcards", "message"),
    [
        ({"a": ["__a__"]}, "The wildcard __a__ contains itself"),
        ({"a": ["__b__ x"], "b": ["__a__"]}, "contains itself"),
        (
            {"a": ["__b__" * 50], "b": ["__c__" * 50], "c": ["__d__" * 50], "d": ["x" * 50]},
            "more than 100,000",
        ),
    ],
)
def test_wildcards_that_grow_without_end_are_stopped_and_named(wildcards, message):
    with pytest.raises(UserError, match=message):
        expand("__a__", 0, wildcards)


SIGNS = ["a", "{", "}", "|", "$$", "2", "-", "::", "__", "[", "]", "\\", " ", "animal", "1-2$$", "\n"]


@given(st.lists(st.sampled_from(SIGNS), max_size=40).map("".join), st.integers(0, 2**32))
def test_no_prompt_raises_and_a_seed_repeats(prompt, seed):
    assert expand(prompt, seed, ANIMALS) == expand(prompt, seed, ANIMALS)


@pytest.mark.parametrize(
    "text",
    [
        "{" * 50_000 + "}" * 50_000,
        "}" * 99_999,
        "{a|" * 33_000,
        "__" * 50_000,
        "__a" * 33_000,
        "{" + "|" * 90_000,
        "[" * 99_999 + "}",
    ],
)
def test_a_hundred_thousand_signs_are_read_in_linear_time(text):
    began = time.process_time()
    expand(text, 1, ANIMALS)
    assert time.process_time() - began < 5


def test_deep_braces_and_long_lists_end_in_a_picture_or_in_a_sentence():
    deep = "{a|" * 10_000 + "b" + "}" * 10_000
    assert set(expand(deep, 3)[0]) <= {"a", "b"}
    began = time.process_time()
    with pytest.raises(UserError, match="more than 100,000"):
        expand("{a" * 2 + "x" * 100_000, 1)
    wide = "{9999$$" + "|".join("a" * 9_000) + "}"
    assert expand(wide, 1)[0].count("a") == 9_000
    assert time.process_time() - began < 20


def test_wildcards_are_read_from_a_folder_of_texts(tmp_path):
    (tmp_path / "colours").mkdir()
    (tmp_path / "colours" / "warm.txt").write_text("# mine\nred\n\n orange \n", encoding="utf-8")
    (tmp_path / "animal.txt").write_text("\ufeffcat", encoding="utf-8")
    (tmp_path / "notes.md").write_text("no")
    assert read_wildcards(tmp_path) == {"animal": ["cat"], "colours/warm": ["red", "orange"]}
    assert read_wildcards(tmp_path / "nowhere") == {}
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"bad\.txt is no list of options") as error:
        read_wildcards(tmp_path)
    assert "UTF-8" in error.value.fix
