"""Embedding: the model's own numbers, on disk, after whatever ended the program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_vit import make_vit, photos

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import ProgressEvent
from fastsd_lib.vit.config import Features, RunnerConfig
from fastsd_lib.vit.embed import Embedder, embed
from fastsd_lib.vit.image_search import ImageSearch, search_images
from fastsd_lib.vit.index import build_index
from fastsd_lib.vit.model import VitModel, load_torch, open_model
from fastsd_lib.vit.transform import Transform
from fastsd_lib.vit.vector_store import VectorStore

CONFIG = RunnerConfig(backend="torch", precision="fp32", threads=1, batch_size=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> VitModel:
    return open_model(make_vit(tmp_path_factory.mktemp("models") / "tiny", layers=3))


@pytest.fixture
def folder(tmp_path) -> Path:
    photos(tmp_path / "photos", 10, sizes=((90, 60), (60, 90), (70, 70)))
    return tmp_path / "photos"


def run(model: VitModel, what, out: Path, **more) -> VectorStore:
    return embed(model, what, more.pop("features", Features()), CONFIG, out, **{"part_rows": 4, **more})


@pytest.mark.parametrize("features", [
    Features(), Features(0, "mean"), Features(2), Features(2, "mean", normalize=True), Features(3), Features(-1, "mean"),
])  # fmt: skip
def test_a_vector_is_what_transformers_has_at_that_place(model, folder, tmp_path, features):
    store = run(model, folder, tmp_path / "out", features=features)
    base = load_torch(model).base_model
    transform = Transform.of(model)
    for row, key in enumerate(store.keys):
        pixels = torch.from_numpy(transform.open_and_apply(folder / key))[None]
        with torch.inference_mode():
            found = base(pixel_values=pixels, output_hidden_states=True)
        states = found.last_hidden_state if features.layer == -1 else found.hidden_states[features.layer]
        wanted = states[0, 0] if features.pool == "cls" else states[0, 1:].mean(dim=0)
        wanted = wanted / wanted.norm() if features.normalize else wanted
        assert np.allclose(store.vectors[row], wanted.numpy(), atol=2e-5)
    if features.normalize:
        assert np.allclose(np.linalg.norm(store.vectors, axis=1), 1, atol=1e-5)


def test_the_last_layer_is_not_the_one_before_its_norm_nor_the_pooler(model, folder, tmp_path):
    after = run(model, folder, tmp_path / "a").vectors
    before = run(model, folder, tmp_path / "b", features=Features(3)).vectors
    assert not np.allclose(after, before, atol=1e-2)


def test_bad_pictures_are_rows_with_their_error_and_the_order_stays(model, folder, tmp_path):
    (folder / "a_broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 half of a JPEG")
    (folder / "z_empty.png").write_bytes(b"")
    told: list[ProgressEvent] = []
    store = run(model, folder, tmp_path / "out", on_progress=told.append)
    assert store.keys == [f"photo_{number:04d}.jpg" for number in range(10)]
    assert list(store.errors) == ["a_broken.jpg", "z_empty.png"] and "empty" in store.errors["z_empty.png"]
    assert (told[0].done, told[-1].done, told[-1].total) == (0, 12, 12)


def test_half_precision_on_disk_is_the_rounded_vector(model, folder, tmp_path):
    whole, half = run(model, folder, tmp_path / "a"), run(model, folder, tmp_path / "b", dtype="float16")
    assert half.vectors.dtype == np.float16 and np.array_equal(half.vectors, whole.vectors.astype(np.float16))


def test_pictures_from_memory_with_one_name_twice_keep_both(model, tmp_path):
    random = np.random.default_rng(0)
    arrays = random.integers(0, 255, (3, 40, 50, 3), dtype=np.uint8)
    photo = photos(tmp_path / "p", 1)[0]
    what = [photo, photo, photo.read_bytes(), Image.fromarray(arrays[0]), *arrays[1:]]
    store = run(model, what, tmp_path / "out")
    assert len(store) == 6 and len(set(store.keys)) == 6 and store.keys[1] == f"{photo}#2"
    assert np.array_equal(store.vectors[0], store.vectors[1])
    calls = count_pictures(model, what, tmp_path / "out")
    assert calls == 0  # bytes, images and arrays are known by their hash


def test_a_second_run_embeds_only_what_is_new_or_changed_and_drops_what_is_gone(model, folder, tmp_path):
    out = tmp_path / "out"
    run(model, folder, out)
    assert count_pictures(model, folder, out) == 0
    manifest = (out / "store.json").read_bytes()
    run(model, folder, out)
    assert (out / "store.json").read_bytes() == manifest  # nothing was written

    names = sorted(os.listdir(folder))
    (folder / names[2]).write_bytes((folder / names[7]).read_bytes())  # changed
    os.utime(folder / names[3], ns=(1, 1))  # only touched
    (folder / names[4]).unlink()
    photos(tmp_path / "more", 12, sizes=((64, 64),))[11].rename(
        folder / "photo_0003b.jpg"
    )  # new, in the middle
    assert count_pictures(model, folder, out) == 2
    store, fresh = run(model, folder, out), run(model, folder, tmp_path / "fresh")
    assert store.keys == fresh.keys == sorted(os.listdir(folder))
    assert np.allclose(store.vectors, fresh.vectors, atol=1e-5)
    moved = folder.rename(tmp_path / "elsewhere")
    assert count_pictures(model, moved, out) == 0
    assert VectorStore.open(out).place(0) == moved / names[0]


def test_pictures_in_a_zip_are_known_by_their_bytes(model, folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, f"in/{path.name}")
    packed = run(model, tmp_path / "all.zip", tmp_path / "out")
    assert np.array_equal(packed.vectors, run(model, folder, tmp_path / "direct").vectors)
    assert packed.keys[0].endswith("all.zip!in/photo_0000.jpg")
    assert count_pictures(model, tmp_path / "all.zip", tmp_path / "out") == 0
    with zipfile.ZipFile(tmp_path / "all.zip", "a") as archive:
        archive.write(folder / "photo_0001.jpg", "in/z.jpg")
    assert count_pictures(model, tmp_path / "all.zip", tmp_path / "out") == 1


def count_pictures(model: VitModel, what, out: Path) -> int:
    """How many pictures are really embedded."""
    counted: list[int] = []

    class Counting(Embedder):
        def __call__(self, items, *more):
            counted.append(len(items))
            return super().__call__(items, *more)

    import fastsd_lib.vit.embed as module

    kept, module.Embedder = module.Embedder, Counting
    try:
        run(model, what, out)
    finally:
        module.Embedder = kept
    return sum(counted)


def test_a_failed_picture_is_tried_again(model, folder, tmp_path):
    whole = (folder / "photo_0005.jpg").read_bytes()
    (folder / "photo_0005.jpg").write_bytes(whole[:200])
    assert list(run(model, folder, tmp_path / "out").errors) == ["photo_0005.jpg"]
    (folder / "photo_0005.jpg").write_bytes(whole)
    store = run(model, folder, tmp_path / "out")
    assert not store.errors and store.row_of["photo_0005.jpg"] == 5


_CHILD = """
import sys
from pathlib import Path
from fastsd_lib.vit import embed as module
from fastsd_lib.vit.config import Features, RunnerConfig
from fastsd_lib.vit.model import open_model
model, what, out = sys.argv[1:]
slow = module.write_part
def write_part(*arguments):
    slow(*arguments)
    print("part", flush=True)
    sys.stdin.readline()
module.write_part = write_part
config = RunnerConfig(backend="torch", precision="fp32", threads=1, batch_size=4)
module.embed(open_model(model), Path(what), Features(), config, Path(out), part_rows=4)
"""


def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_bytes(model, folder, tmp_path):
    whole = run(model, folder, tmp_path / "whole")
    out = tmp_path / "out"
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(model.path), str(folder), str(out)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert child.stdout.readline() == "part\n"
    child.stdin.write("\n")
    child.stdin.flush()
    assert child.stdout.readline() == "part\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (out / "store.json").exists() and len(list((out / "parts").glob("*.npy"))) == 2
    (out / "parts" / ".left.npy").write_bytes(b"half")  # what a kill in the middle of a write leaves
    began = time.time_ns()
    assert count_pictures(model, folder, out) == 2  # ten pictures, two parts of four were done
    store = VectorStore.open(out)
    assert began < (out / "store.json").stat().st_mtime_ns
    assert store.vectors_file.read_bytes() == whole.vectors_file.read_bytes() and store.rows == whole.rows
    assert not (out / "parts").exists()


def test_a_part_that_was_damaged_meanwhile_is_made_again(model, folder, tmp_path, monkeypatch):
    import fastsd_lib.vit.embed as module

    monkeypatch.setattr(module.Plan, "finish", lambda plan: None)
    run(model, folder, tmp_path / "out")
    monkeypatch.undo()
    part = sorted((tmp_path / "out" / "parts").glob("*.npy"))[1]
    part.write_bytes(part.read_bytes()[:-1] + b"!")
    assert count_pictures(model, folder, tmp_path / "out") in (2, 4)
    assert np.array_equal(
        VectorStore.open(tmp_path / "out").vectors, run(model, folder, tmp_path / "whole").vectors
    )


def test_vectors_that_are_made_in_another_way_are_not_mixed_in(model, folder, tmp_path):
    run(model, folder, tmp_path / "out")
    other = open_model(make_vit(tmp_path / "other", layers=3, seed=1))
    for call in (
        lambda: run(other, folder, tmp_path / "out"),
        lambda: run(model, folder, tmp_path / "out", features=Features(1)),
        lambda: run(model, folder, tmp_path / "out", dtype="float16"),
        lambda: run(model, folder, tmp_path / "out", fit="crop"),
    ):
        with pytest.raises(UserError, match="made in another way") as caught:
            call()
        assert "another folder" in caught.value.fix and "\n" not in caught.value.message
    vectors = VectorStore.open(tmp_path / "out").vectors_file
    vectors.write_bytes(vectors.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match="damaged"):
        run(model, folder, tmp_path / "out")


def test_a_model_that_gives_no_numbers_is_an_error_in_each_row(model, folder, tmp_path, monkeypatch):
    import fastsd_lib.vit.embed as module

    class Broken:
        name, batch_size = "torch fp32", 4

        def __init__(self, runner) -> None:
            self._runner = runner

        def submit(self, pixels):
            future = self._runner.submit(pixels)
            future.result()[0, 3] = np.nan
            return future

        def close(self) -> None:
            self._runner.close()

    opened = module.open_runner
    monkeypatch.setattr(module, "open_runner", lambda *arguments: Broken(opened(*arguments)))
    store = run(model, folder, tmp_path / "out")
    assert len(store) == 7 and list(store.errors) == ["photo_0000.jpg", "photo_0004.jpg", "photo_0008.jpg"]
    assert all("NaN" in error for error in store.errors.values())


def test_where_nothing_can_be_read_the_store_is_empty_but_whole(model, tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.jpg").write_bytes(b"nothing")
    store = run(model, tmp_path / "p", tmp_path / "out")
    assert len(store) == 0 and list(VectorStore.open(tmp_path / "out").errors) == ["a.jpg"]
    with pytest.raises(UserError, match="1 pictures could not be read"):
        build_index(store)


def test_image_in_neighbours_out(model, folder, tmp_path):
    store = run(model, folder, tmp_path / "out")
    index = build_index(store)
    found = search_images(index, model, folder / "photo_0003.jpg", 4, runner_config=CONFIG)
    assert (
        found[0].key == "photo_0003.jpg"
        and found[0].score > 0.9999
        and found[0].place == folder / "photo_0003.jpg"
    )
    unit = store.vectors / np.linalg.norm(store.vectors, axis=1, keepdims=True)
    wanted = np.argsort(-(unit @ unit[3]))[:4]
    assert [one.row for one in found] == wanted.tolist()
    with ImageSearch(index, model, CONFIG) as search:
        assert search.search((folder / "photo_0003.jpg").read_bytes(), 1)[0].key == "photo_0003.jpg"
        with pytest.raises(UserError, match="not a photo"):
            search.search(b"text")
        with pytest.raises(UserError, match="One picture is searched for at a time; here are 10"):
            search.search(folder)


def test_an_index_of_another_model_is_not_searched(model, folder, tmp_path):
    index = build_index(run(model, folder, tmp_path / "out"))
    other = open_model(make_vit(tmp_path / "other", layers=3, seed=1))
    with pytest.raises(UserError, match="The index holds vectors of tiny; other is another model") as caught:
        search_images(index, other, folder / "photo_0003.jpg", runner_config=CONFIG)
    assert "search with the model" in caught.value.fix
