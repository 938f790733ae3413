"""The prompt language: the published cases of AUTOMATIC1111's parser, its rules one by one, and hostile text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsd_lib.generation.prompt_language import BREAK, Piece, Schedule, attention, branches


def ten(prompt: str) -> list[tuple[int, str]]:
    return Schedule.read(prompt).entries(10)


# Inputs and outputs of the tables that AUTOMATIC1111 and Forge publish with their parser, all 16 and 6.
SCHEDULES = {
    "test": [(10, "test")],
    "a [b:3]": [(3, "a "), (10, "a b")],
    "a [b: 3]": [(3, "a "), (10, "a b")],
    "a [[[b]]:2]": [(2, "a "), (10, "a [[b]]")],
    "[(a:2):3]": [(3, ""), (10, "(a:2)")],
    "a [b : c : 1] d": [(1, "a b  d"), (10, "a  c  d")],
    "a[b:[c:d:2]:1]e": [(1, "abe"), (2, "ace"), (10, "ade")],
    "a [unbalanced": [(10, "a [unbalanced")],
    "a [b:.5] c": [(5, "a  c"), (10, "a b c")],
    "a [{b|d{:.5] c": [(5, "a  c"), (10, "a {b|d{ c")],
    "((a][:b:c [d:3]": [(3, "((a][:b:c "), (10, "((a][:b:c d")],
    "[a|(b:1.1)]": [(step, "a" if step % 2 else "(b:1.1)") for step in range(1, 11)],
    "[fe|]male": [(step, "female" if step % 2 else "male") for step in range(1, 11)],
    "[fe|||]male": [(step, "female" if step % 4 == 1 else "male") for step in range(1, 11)],
}
WEIGHTS = {
    "normal text": [("normal text", 1.0)],
    "an (important) word": [("an ", 1.0), ("important", 1.1), (" word", 1.0)],
    "(unbalanced": [("unbalanced", 1.1)],
    r"\(literal\]": [("(literal]", 1.0)],
    "(unnecessary)(parens)": [("unnecessaryparens", 1.1)],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        ("a ", 1.0),
        ("house", 1.5730000000000004),
        (" ", 1.1),
        ("on", 1.0),
        (" a ", 1.1),
        ("hill", 0.55),
        (", sun, ", 1.1),
        ("sky", 1.4641000000000006),
        (".", 1.1),
    ],
}


@pytest.mark.parametrize("prompt", SCHEDULES)
def test_every_published_schedule_reads_as_published(prompt):
    assert ten(prompt) == SCHEDULES[prompt]


def test_parts_above_one_belong_to_the_second_pass_as_published():
    assert Schedule.read("a [b:.5] c").entries(10, after_steps=10) == [(10, "a b c")]
    assert Schedule.read("a [b:1.5] c").entries(10, after_steps=10) == [(5, "a  c"), (10, "a b c")]


@pytest.mark.parametrize("prompt", WEIGHTS)
def test_every_published_weight_is_published_bit_for_bit(prompt):
    assert attention(prompt) == WEIGHTS[prompt]


def test_whole_numbers_count_on_in_the_second_pass_and_parts_of_the_first_are_over():
    both = Schedule.read("[a:b:12] [c:d:1.25]")
    assert both.entries(10) == [(10, "a c")]
    assert both.entries(8, after_steps=10) == [(2, "a c"), (8, "b d")]


def test_the_long_example_of_the_manual_changes_where_it_says():
    prompt = (
        "landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75]"
        "[ in foreground::0.6][: in background:0.25] [shoddy:masterful:0.5]"
    )
    assert Schedule.read(prompt).entries(100) == [
        (25, "landscape with a mountain and an oak in foreground shoddy"),
        (50, "landscape with a lake and an oak in foreground in background shoddy"),
        (60, "landscape with a lake and an oak in foreground in background masterful"),
        (75, "landscape with a lake and an oak in background masterful"),
        (100, "landscape with a lake and a christmas tree in background masterful"),
    ]


@pytest.mark.parametrize(
    ("prompt", "entries"),
    [
        ("[a::3]", [(3, "a"), (10, "")]),
        ("[:a:3]", [(3, ""), (10, "a")]),
        ("[a:b:0]", [(10, "b")]),
        ("[a:b:-4]", [(10, "b")]),
        ("[a:b:99]", [(10, "a")]),
        ("[a:b:1.0]", [(10, "a")]),
        ("[a:b:3 ]", [(3, "a"), (10, "b")]),
        ("[a:b:1e1]", [(10, "a")]),
        ("[a:b:1e999]", [(10, "a")]),
        ("[a:b:c:3]", [(10, "[a:b:c:3]")]),  # three halves: text
        ("[a:b]", [(10, "[a:b]")]),  # no number: text
        (r"[a\:b:3]", [(3, ""), (10, r"a\:b")]),
        (r"\[a:3]", [(10, r"\[a:3]")]),
        ("([a:b:3]:1.2)", [(3, "(a:1.2)"), (10, "(b:1.2)")]),
        ("[[a|b]:c:2]", [(1, "a"), (2, "b"), *((step, "c") for step in range(3, 11))]),
        ("[a [b:3] c", [(3, "[a  c"), (10, "[a b c")]),
        ("[a (b] c:3]", [(10, "[a (b] c:3]")]),
        ("[a (b] c):3]", [(10, "[a (b] c):3]")]),  # what is unbalanced makes text of all around it
        ("[x [a:b] y:3]", [(10, "[x [a:b] y:3]")]),
        ("[(a:b:c):3]", [(10, "[(a:b:c):3]")]),
        ("a | b [c:3]", [(3, "a | b "), (10, "a | b c")]),
        ("", [(10, "")]),
    ],
)
def test_editing(prompt, entries):
    assert ten(prompt) == entries


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("[x]", [("x", 1 / 1.1)]),
        ("(x:1.5)", [("x", 1.5)]),
        ("(x: 1.5 )", [("x", 1.5)]),
        ("(x:-1)", [("x", -1.0)]),
        ("(x:.5)", [("x", 0.5)]),
        ("(x:1.2.3)", [("x:1.2.3", 1.1)]),  # no number
        ("x:1.5)", [("x:1.5)", 1.0)]),
        ("[x:1.5]", [("x:1.5", 1 / 1.1)]),
        ("a) b]", [("a) b]", 1.0)]),
        (r"a\\b \x", [(r"a\b x", 1.0)]),
        (r"cat \(animal\)", [("cat (animal)", 1.0)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1.1 * (1 / 1.1)), (" c", 1 / 1.1)]),
        ("", [("", 1.0)]),
        ("()", [("", 1.0)]),
    ],
)
def test_attention(prompt, pieces):
    assert attention(prompt) == pieces


def test_break_parts_a_prompt_wherever_it_stands_and_only_as_a_word():
    assert attention("a BREAK b") == [Piece("a", 1.0), BREAK, Piece("b", 1.0)]
    assert attention("a\nBREAK\n b") == [Piece("a", 1.0), BREAK, Piece("b", 1.0)]
    assert attention("(a BREAK b:1.5)") == [Piece("a", 1.5), BREAK, Piece("b", 1.5)]
    assert attention("BREAKS break") == [Piece("BREAKS break", 1.0)]
    assert sum(piece is BREAK for piece in attention("a BREAK BREAK b")) == 2


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("a cat AND a dog", [("a cat", 1.0), (" a dog", 1.0)]),
        ("a :1.2 AND b :0.8", [("a", 1.2), (" b", 0.8)]),
        ("a:-1 AND b :.5\n", [("a", -1.0), (" b", 0.5)]),
        ("a AND ", [("a", 1.0), ("", 1.0)]),
        ("BRAND AND SAND", [("BRAND", 1.0), (" SAND", 1.0)]),
        ("a and b", [("a and b", 1.0)]),
        ("(a:1.2) AND b", [("(a:1.2)", 1.0), (" b", 1.0)]),
        ("time 4:x", [("time 4:x", 1.0)]),
        ("one\ntwo :2. AND b", [("one\ntwo", 2.0), (" b", 1.0)]),
        ("a :" + "9" * 400, [("a :" + "9" * 400, 1.0)]),  # no number that a picture survives
    ],
)
def test_and_combines_prompts_with_their_weights(prompt, parts):
    assert branches(prompt) == parts


# --- hostile text

SIGNS = st.lists(
    st.sampled_from(["a", " ", ",", "(", ")", "[", "]", ":", "|", "\\", "1", ".", "\n", "BREAK", "é"]),
    max_size=40,
).map("".join)


@given(SIGNS, st.integers(1, 20), st.none() | st.integers(1, 20))
def test_no_prompt_raises_and_every_schedule_ends_with_the_last_step(prompt, steps, after_steps):
    for text, weight in branches(prompt):
        assert abs(weight) < 1e31
        entries = Schedule.read(text).entries(steps, after_steps)
        ends = [end for end, _ in entries]
        assert ends == sorted(set(ends)) and ends[-1] == steps and ends[0] >= 1
        for _, said in entries:
            assert all(abs(piece.weight) <= 1e6 for piece in attention(said))


@given(st.text(st.sampled_from("abc ,.xyz\n"), max_size=60))
def test_text_without_signs_is_left_as_it_is(prompt):
    assert ten(prompt) == [(10, prompt)]
    assert attention(prompt) == [(prompt, 1.0)]


@given(SIGNS)
def test_words_between_steps_are_the_text_of_their_entry(prompt):
    schedule = Schedule.read(prompt)
    entries = schedule.entries(10)
    for step in range(1, 11):
        assert schedule.text_at(step, 10) == next(said for end, said in entries if step <= end)


def slow_weights(text: str) -> list[tuple[str, float]]:
    """The rule as it is told: every closing bracket multiplies all that stands since its opening one."""
    words: list[list] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    factor = {"(": 1.1, "[": 1 / 1.1}
    for sign in text:
        if sign in opened:
            opened[sign].append(len(words))
        elif sign in ")]" and opened["(["[")]".index(sign)]]:
            kind = "(["[")]".index(sign)]
            for word in words[opened[kind].pop() :]:
                word[1] *= factor[kind]
        else:
            words.append([sign, 1.0])
    for kind in "([":
        for start in opened[kind]:
            for word in words[start:]:
                word[1] *= factor[kind]
    merged: list[list] = []
    for word, weight in words:
        if merged and merged[-1][1] == weight:
            merged[-1][0] += word
        else:
            merged.append([word, weight])
    return [(word, weight) for word, weight in merged] or [("", 1.0)]


@given(st.text(st.sampled_from("ab([)]"), max_size=40))
def test_weights_equal_a_slow_twin_bit_for_bit(text):
    assert attention(text) == slow_weights(text)


HOSTILE = {
    "opening": "(" * 100_000,
    "square": "[" * 100_000,
    "closing": "])" * 50_000,
    "words in brackets": "(a" * 50_000,
    "closed words in brackets": "(a" * 25_000 + ")" * 25_000,
    "crossing": "(a[b" * 12_000 + ")]" * 12_000,
    "editing in editing": "[a:" * 20_000 + "b" + ":3]" * 20_000,
    "alternation in alternation": "[a|" * 30_000 + "]" * 30_000,
    "colons": ":" * 100_000,
    "numbers": ":1" * 50_000,
    "bars": "[" + "|" * 99_999,
    "spaces": " " * 100_000 + "x",
    "colon and spaces": ("(a:" + " " * 500) * 200,
    "backslashes": "\\" * 100_000,
    "breaks": " BREAK" * 16_000,
    "ands": " AND" * 25_000,
    "spaces before and": (" " * 1000 + "AND") * 100,
    "digits": "(a:" + "9" * 100_000,
    "digits of a step": "[a:" + "9" * 100_000 + "]",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hundred_thousand_signs_are_read_in_linear_time(name):
    """A quadratic rule takes minutes here; seconds of the thread's own time are more than it needs on a slow core."""
    began = time.thread_time()
    for branch in branches(HOSTILE[name]):
        schedule = Schedule.read(branch.text)
        schedule.changes(20)
        attention(schedule.text_at(1, 20))
        attention(schedule.text_at(20, 20))
    assert time.thread_time() - began < 6
