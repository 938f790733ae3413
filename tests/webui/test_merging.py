"""Merges that the page asks for: names in, a model in the lists out; stopped, refused, one at a time."""

from __future__ import annotations

import shutil
import threading

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from fastsd_lib.core.errors import UserError
from fastsd_lib.formats import merge as merge_module
from fastsd_lib.formats.single_file import export_single_file
from fastsd_lib.generation.library import LibraryFolders
from fastsd_lib.generation.resources import Library
from fastsd_lib.generation.service import Service
from fastsd_lib.generation.shelf import Shelf
from fastsd_lib.webui.context import ApiContext
from fastsd_lib.webui.merging import Merging
from fastsd_lib.webui.options import Options

USUAL = {"method": "weighted_sum", "multiplier": 0.3, "dtype": "fp16"}


@pytest.fixture
def context(tiny_pipeline, tmp_path):
    folder = tmp_path / "models" / "Stable-diffusion"
    export_single_file(tiny_pipeline, folder / "first.safetensors")
    shutil.copy(folder / "first.safetensors", folder / "second.safetensors")
    service = Service(Shelf(Library.of(LibraryFolders.under(tmp_path))))
    yield ApiContext(service, Options())
    service.close()


def merged(context, **choices):
    merging = Merging(context)
    merging.start(USUAL | choices)
    merging.wait(60)
    return merging.state


def test_the_result_is_in_the_lists_at_once_with_its_recipe(context):
    state = merged(context, a="first", b="second", name="both", metadata={"by": "me"})
    assert not state.failed and not state.running and "both.safetensors is in the list" in state.said
    found = context.service.shelf.find("both")
    with safe_open(found.path, "pt") as file:
        assert file.metadata()["by"] == "me" and "sd_merge_recipe" in file.metadata()
    assert found.family == "sd1"


def test_a_vae_is_named_as_lists_name_it(context):
    shelf = context.service.shelf
    folder = shelf.folders.vaes[0]
    folder.mkdir(parents=True)
    shutil.copy(shelf.find("first").path, folder / "bright.safetensors")
    assert not merged(context, a="first", method="none", vae="bright", name="baked").failed
    with safe_open(shelf.find("baked").path, "pt") as file:
        assert '"bake_in_vae": "bright.safetensors"' in file.metadata()["sd_merge_recipe"]
    with pytest.raises(UserError, match="No VAE 'dark'"):
        merged(context, a="first", method="none", vae="dark")


@pytest.mark.parametrize(
    ("choices", "name"),
    [({}, "0.7(first) + 0.3(second)"),
     ({"method": "add_difference", "c": "first"}, "first + 0.3(second - first)"),
     ({"method": "none"}, "first merged")],
)  # fmt: skip
def test_what_nobody_named_is_named_after_the_models(context, choices, name):
    assert merged(context, a="first", b="second", **choices).name == name
    assert context.service.shelf.find(name).path.is_file()


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"a": "thrid"}, "No model 'thrid'"),
        ({"a": ""}, "no model A"),
        ({"name": "../../evil"}, "cannot name a file"),
        ({"name": ".hidden"}, "cannot name a file"),
        ({"name": "x" * 300}, "cannot name a file"),
        ({"name": "second"}, "'second' is there already"),
        ({"name": "embedded"}, "'embedded' is there already"),
    ],
)
def test_names_that_cannot_be_are_refused_before_it_begins(context, choices, said):
    with pytest.raises(UserError, match=said):
        merged(context, **{"a": "first", "b": "second"} | choices)


def test_what_goes_wrong_is_said_with_the_way_out(context):
    state = merged(context, a="first", name="alone")
    assert state.failed and state.said == "Weighted sum needs a model B. Choose one, or another method."
    folder = context.service.shelf.folders.checkpoints[0]
    assert sorted(path.name for path in folder.iterdir()) == ["first.safetensors", "second.safetensors"]


def test_one_at_a_time_and_it_can_be_stopped(context, monkeypatch):
    began, go_on = threading.Event(), threading.Event()
    real = merge_module.open_model

    def slow(*args):
        began.set()
        assert go_on.wait(30)
        return real(*args)

    monkeypatch.setattr(merge_module, "open_model", slow)
    merging = Merging(context)
    merging.start(USUAL | {"a": "first", "b": "second", "name": "both"})
    assert began.wait(30) and merging.state.running
    with pytest.raises(UserError, match="both is being merged"):
        merging.start(USUAL | {"a": "first", "b": "second", "name": "other"})
    merging.stop()
    go_on.set()
    merging.wait(30)
    assert merging.state.failed and "stopped; nothing was written" in merging.state.said
    assert {one.name for one in context.service.shelf.models()} == {"first", "second", "embedded"}
    assert not merged(context, a="first", b="second", name="both").failed


def test_a_server_without_a_folder_of_checkpoints_says_so():
    service = Service(Shelf(Library.of(LibraryFolders())))
    try:
        with pytest.raises(UserError, match="no folder of checkpoints"):
            Merging(ApiContext(service, Options())).start(USUAL | {"a": "embedded", "method": "none"})
    finally:
        service.close()


def test_the_embedded_model_is_one_of_them(context):
    assert not merged(context, a="embedded", method="none", name="mine", dtype=None).failed
    assert len(load_file(context.service.shelf.find("mine").path)) > 100
