"""Styles and wildcards, picture by picture."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.library import LibraryFolders
from fastsd_lib.generation.prompts import known_styles, prepare_prompts
from fastsd_lib.generation.request import GenerationRequest, Hires
from fastsd_lib.generation.wildcards import expand

ORDER = GenerationRequest("a {red|green|blue} cat", seed=100, count=12, negative_prompt="{x|y}")
NONE = LibraryFolders()


def drawn(prepared):
    """(seed, prompt, negative prompt, variation seed) of every picture."""
    return [
        (
            one.seed + (0 if one.variation_strength else number),
            one.prompt,
            one.negative_prompt,
            one.variation_seed + number,
        )
        for one in prepared.requests
        for number in range(one.count)
    ]


def test_a_plain_request_stays_as_it_is():
    request = replace(ORDER, prompt="a (cat:1.2) [a|b] snake_case", negative_prompt="")
    assert prepare_prompts(request, NONE).requests == (request,)


def test_each_picture_has_its_own_choice_by_its_own_seed():
    prepared = prepare_prompts(ORDER, NONE)
    pictures = drawn(prepared)
    assert [seed for seed, *_ in pictures] == list(range(100, 112))
    assert len({prompt for _, prompt, *_ in pictures}) == 3
    for seed, prompt, negative, _ in pictures:
        assert (prompt, negative) == (expand(ORDER.prompt, seed)[0], expand(ORDER.negative_prompt, seed)[0])
    alone = prepare_prompts(replace(ORDER, seed=107, count=1), NONE)
    assert drawn(alone)[0][:3] == pictures[7][:3], "as when it is drawn alone"


def test_neighbours_with_the_same_prompt_stay_together():
    prepared = prepare_prompts(ORDER, NONE)
    both = [(one.prompt, one.negative_prompt) for one in prepared.requests]
    assert all(one != other for one, other in pairwise(both))
    assert len(prepared.requests) < 12


def test_variations_share_their_prompt_and_count_their_own_seed():
    prepared = prepare_prompts(replace(ORDER, variation_strength=0.2, variation_seed=7), NONE)
    (request,) = prepared.requests
    assert (request.seed, request.variation_seed, request.count) == (100, 7, 12)


def test_the_second_pass_gets_its_choices_too():
    request = replace(ORDER, negative_prompt="", hires=Hires(prompt="a {big|small} cat"))
    for seed, one in enumerate(prepare_prompts(request, NONE).requests[:1], 100):
        assert one.hires.prompt == expand("a {big|small} cat", seed)[0]
        assert one.hires.negative_prompt == ""


def test_wildcards_come_from_the_users_files_and_unknown_ones_stay_with_a_warning(tmp_path):
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    for folder, text in ((mine, "owl\n"), (theirs, "dog\n")):
        (folder / "zoo").mkdir(parents=True)
        (folder / "zoo" / "animal.txt").write_text(text)
    folders = LibraryFolders(wildcards=(mine, theirs, tmp_path / "none"))
    request = replace(ORDER, prompt="a __zoo/animal__ and __ghost__", negative_prompt="", count=2)
    prepared = prepare_prompts(request, folders)
    assert [one.prompt for one in prepared.requests] == ["a owl and __ghost__"]
    assert prepared.warnings == ("there is no wildcard __ghost__; it was left as it is",)
    (mine / "zoo" / "animal.txt").write_text("a long-eared owl\n")
    assert prepare_prompts(request, folders).requests[0].prompt == "a a long-eared owl and __ghost__"


def test_a_wildcard_in_itself_is_refused(tmp_path):
    (tmp_path / "loop.txt").write_text("__loop__\n")
    with pytest.raises(UserError, match="__loop__ contains itself") as refused:
        prepare_prompts(replace(ORDER, prompt="__loop__"), LibraryFolders(wildcards=(tmp_path,)))
    assert refused.value.fix.startswith("look through its lines")


def test_styles_are_put_in_by_name_before_the_choices_are_made(tmp_path):
    for name, text in (("a", "drawn,{prompt} in {ink|oil},blurry"), ("b", "drawn,never,never\nother,sharp,")):
        (tmp_path / f"{name}.csv").write_text(f"name,prompt,negative_prompt\n{text}\n")
    folders = LibraryFolders(styles=(tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "none.csv"))
    assert list(known_styles(folders)) == ["drawn", "other"]
    request = replace(ORDER, prompt="a cat", negative_prompt="", count=1, hires=Hires(prompt="a dog"))
    prepared = prepare_prompts(request, folders, ["drawn", "other", "ghost"])
    (one,) = prepared.requests
    assert one.prompt == f"a cat in {expand('{ink|oil}', 100)[0]}, sharp"
    assert one.negative_prompt == "blurry"
    assert one.hires.prompt == f"a dog in {expand('{ink|oil}', 100)[0]}, sharp"
    assert one.hires.negative_prompt == ""
    assert prepared.warnings == ("there is no style 'ghost'; it was left out",)
