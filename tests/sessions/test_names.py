from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.text import escaped, name_problem, one_line, safe_stem
from fastsd_lib.sessions.names import check_name
from fastsd_lib.sessions.session import create_session, open_session, sessions_dir

ANYTHING = st.text(
    'abC1 ./\\:*?"<>|~-_\n\0\x1b[m\u200b\u202e\u200d\u0301\ud800COMnulß猫🐈\u3000\u212a\u3164\ufe0f\U0001fae9',
    max_size=60,
)


@pytest.mark.parametrize(
    "name",
    [
        "my-cat",
        "Кот",
        "猫の写真",
        "🐈",
        "👨‍👩‍👧 family",
        "مي‌خواهم",
        "a b.c",
        "x" * 150,
        "$(reboot)",
        "{a}%s",
        "it's",
        "\U0001fae9 new",  # an emoji that is younger than this Python
        "cafe\u0301 ☺️",
        "ไทย",
        "नमस्ते",
        "a\u00a0b",
    ],
)
def test_names_of_every_script_are_kept(name):
    assert check_name(name) == unicodedata.normalize("NFC", name)


def test_one_name_in_two_spellings_is_one_name():
    assert check_name("cafe\u0301") == check_name("caf\u00e9")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../x", "it begins with '.'"),
        ("..", "a way to another folder"),
        (".", "a way to another folder"),
        ("/abs", "it contains /"),
        ("a/b", "it contains /"),
        ("a\\b", "it contains \\"),
        ("C:", "it contains :"),
        ("what?*", "it contains * ?"),
        ("~", "it begins with '~'"),
        ("~root", "it begins with '~'"),
        ("-rf", "it begins with '-'"),
        (".hidden", "it begins with '.'"),
        ("", "it is empty"),
        ("   ", "it is empty"),
        ("cat ", "ends with a space"),
        (" cat", "begins or ends with a space"),
        ("cat.", "ends with a dot"),
        ("CON", "Windows keeps this name"),
        ("nul.txt", "Windows keeps this name"),
        ("COM1", "Windows keeps this name"),
        ("a\0b", "invisible characters"),
        ("a\nb", "invisible characters"),
        ("a\x1b[31mb", "invisible characters"),
        ("a\u202eb", "invisible characters"),
        ("cat\u200d", "invisible characters"),
        ("\ud800", "invisible characters"),
        ("\u3164", "invisible characters"),  # letters, says Unicode, that nobody can see
        ("a\u2800", "invisible characters"),
        ("\u200fcat", "invisible characters"),
        ("a\u2066b\u2069", "invisible characters"),
        ("\uffff", "invisible characters"),
        ("\u0301cat", "no letter to sit on"),
        ("\ufe0f", "no letter to sit on"),
        ("x" * 300, "300 bytes long, more than 150"),
        ("猫" * 51, "153 bytes long, more than 150"),
    ],
)
def test_a_name_that_no_folder_can_have_is_refused_with_its_reason_and_an_allowed_name(name, reason):
    with pytest.raises(UserError) as error:
        check_name(name)
    assert reason in error.value.message
    offered = error.value.fix.removeprefix("type a name such as ").removesuffix(".")
    assert check_name(offered) == offered
    assert "\x1b" not in str(error.value) and "\n" not in error.value.message


def test_what_is_no_text_is_refused():
    with pytest.raises(UserError, match="A session name is text, not int"):
        check_name(7)


@given(ANYTHING)
def test_a_name_is_either_kept_or_an_allowed_one_is_offered(name):
    try:
        assert name_problem(check_name(name)) == ""
    except UserError as error:
        offered = error.fix.removeprefix("type a name such as ").removesuffix(".")
        assert name_problem(offered) == ""


@given(ANYTHING)
def test_a_stem_made_safe_has_no_problem_and_stays_as_it_is(text):
    stem = safe_stem(text)
    assert stem == "" or name_problem(stem) == ""
    assert safe_stem(stem) == stem


@given(ANYTHING)
def test_cleaning_twice_is_cleaning_once(text):
    assert one_line(one_line(text)) == one_line(text)


@given(ANYTHING)
def test_an_escaped_text_holds_nothing_that_steers_a_terminal(text):
    shown = escaped(text)
    assert not any(unicodedata.category(letter) in {"Cc", "Cs"} for letter in shown)
    assert "\u202e" not in shown
    shown.encode()


def test_joined_emoji_survive_cleaning():
    assert one_line("👨‍👩‍👧\n at\t home\x1b[0m") == "👨‍👩‍👧 at home"


@given(st.text(max_size=40))
def test_any_text_at_all_is_kept_or_refused_in_one_line_and_a_kept_name_is_a_folder(tmp_path_factory, text):
    root = tmp_path_factory.mktemp("root")
    try:
        session = create_session(root, text)
    except UserError as error:
        assert "\n" not in error.message and error.fix
        return
    assert session.path.parent == sessions_dir(root)
    assert open_session(root, text).path == session.path
    assert open_session(root, unicodedata.normalize("NFD", text)).path == session.path


@pytest.mark.parametrize(
    ("first", "second"), [("Кот", "КОТ"), ("straße", "STRASSE"), ("ﬁsh", "fish"), ("a b", "a\u00a0b")]
)
def test_names_that_some_disk_takes_for_one_are_not_both_made(tmp_path, first, second):
    create_session(tmp_path, first)
    with pytest.raises(UserError, match="already"):
        create_session(tmp_path, second)


def test_a_folder_that_is_too_deep_for_the_disk_is_said_in_one_line(tmp_path):
    deep = tmp_path.joinpath(*["x" * 200] * 30)
    for attempt in (create_session, open_session):
        with pytest.raises(UserError) as error:
            attempt(deep, "cat")
        assert "\n" not in error.value.message and error.value.fix
