"""Downloads that were broken off: killed, changed, damaged, taken over; and several connections at once."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fastsd_lib.models.downloading import (
    DownloadRefused,
    DownloadStopped,
    Source,
    download_file,
)
from tests.bad_server import ETAG, QUICK, bad_server, model_bytes

DATA = model_bytes(100_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from pathlib import Path
from fastsd_lib.models.downloading import DownloadRules, Source, download_file
rules = DownloadRules(save_s=0.02, segment_bytes=32 << 10, http_allowed=True, private_allowed=True)
download_file([Source(sys.argv[1], sha256=sys.argv[3])], Path(sys.argv[2]), rules)
"""


@pytest.fixture
def server():
    with bad_server(DATA) as bad:
        yield bad


def ranges(server, since=0):
    return [headers.get("range") for _, headers in server.asked[since:]]


def sent(server, since=0):
    """Bytes that were asked for."""
    pairs = [text.removeprefix("bytes=").split("-") for text in ranges(server, since)]
    return sum(min(int(end) + 1, len(DATA)) - int(start) for start, end in pairs)


def broken_off(server, folder, way="paced", stop=150_000, **known):
    """Leave a download of which about `stop` bytes are there; the source that began it."""
    source, server.pace = Source(f"{server.url}/{way}/a.safetensors", **known), 0.02
    part = lambda: sum(path.stat().st_blocks * 512 for path in folder.glob(".*.part"))  # noqa: E731
    with pytest.raises(DownloadStopped):
        download_file([source], folder, QUICK, should_stop=lambda: part() > stop)
    server.pace = 0.0
    assert [path.suffix for path in sorted(folder.iterdir())] == [".json", ".part"]
    return source


def note(folder):
    return next(folder.glob(".*.json"))


def noted(folder):
    """The stretches that are known to be there."""
    return [pair for path in folder.glob(".*.json") for pair in json.loads(path.read_text())["done"]]


@pytest.mark.parametrize("sha256", ["", SHA256])
def test_killed_at_any_moment_nothing_stands_under_the_name_and_the_next_call_goes_on(
    server, tmp_path, sha256
):
    server.pace, url, kills, had = 0.15, f"{server.url}/paced/a.safetensors", 0, 0
    for number in range(12):  # fewer, unless the disk is so slow that nothing was noted yet
        asked = len(server.asked)
        child = subprocess.Popen([sys.executable, "-c", PROGRAM, url, str(tmp_path), sha256], cwd=REPOSITORY)
        until = time.monotonic() + 20
        while len(server.asked) == asked and child.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
        time.sleep(0.04 + 0.07 * number)
        child.kill()
        if child.wait() == 0:  # it was quicker
            break
        assert child.returncode == -signal.SIGKILL and len(server.asked) > asked
        kills += 1
        assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
        had = sum(end - start for start, end in noted(tmp_path))
        if had and kills >= 5:
            break
    assert kills >= 2
    asked, server.pace = len(server.asked), 0.0
    assert download_file([Source(url, sha256=sha256)], tmp_path, QUICK).read_bytes() == DATA
    assert sent(server, asked) <= len(DATA) - had and had > 0
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_only_what_is_missing_is_fetched_and_only_if_the_file_is_the_same(server, tmp_path):
    source = broken_off(server, tmp_path)
    asked = len(server.asked)
    assert download_file([source], tmp_path, QUICK).read_bytes() == DATA
    assert sent(server, asked) < len(DATA) - 100_000
    assert {headers.get("if-range") for _, headers in server.asked[asked:]} == {ETAG}


@pytest.mark.parametrize("knows_if_range", [True, False])
def test_a_file_that_changed_meanwhile_is_fetched_from_its_beginning(server, tmp_path, knows_if_range):
    source, other = broken_off(server, tmp_path), model_bytes(100_000, "lora_unet_y.lora_down.weight")
    assert len(other) == len(DATA)

    def changed(request):
        if not knows_if_range:
            request.headers.pop("if-range", None)
        return request.give(other, etag='"two"')

    server.ways["paced"] = changed
    assert download_file([source], tmp_path, QUICK).read_bytes() == other


def test_a_server_that_gives_no_parts_any_more_is_asked_for_the_whole(server, tmp_path):
    source = broken_off(server, tmp_path)
    server.ways["paced"] = lambda request: request.say(200, DATA, etag=ETAG) is None
    assert download_file([source], tmp_path, QUICK).read_bytes() == DATA


def test_without_a_sign_of_the_version_only_a_known_hash_lets_parts_be_joined(server, tmp_path):
    plain = Source(f"{server.url}/untagged/a.safetensors")
    assert download_file([plain], tmp_path / "a", QUICK).read_bytes() == DATA
    assert ranges(server)[1:] == [None]  # one stream: the parts could be of two files
    asked = len(server.asked)
    assert download_file([replace(plain, sha256=SHA256)], tmp_path / "b", QUICK).read_bytes() == DATA
    assert len(ranges(server, asked)) > 4 and None not in ranges(server, asked)


@pytest.mark.parametrize(
    "damage",
    ["{", "[]", '{"size": 5}', '{"size":null,"validator":"","origin":"","name":"","done":[[0,9000000]]}'],
)
def test_a_damaged_note_costs_the_bytes_and_nothing_else(server, tmp_path, damage):
    source = broken_off(server, tmp_path)
    note(tmp_path).write_text(damage)
    assert download_file([source], tmp_path, QUICK).read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize(
    "changes",
    [
        {"done": [[0, len(DATA)]]},  # more than is there
        {"done": [[100, 50]]},
        {"done": [[-5, 50]]},
        {"validator": ""},  # nothing says that the file is still the same
        {"origin": "0123456789abcdef"},  # of another address
        {"size": len(DATA) + 1},
    ],
)
def test_bytes_of_which_the_note_tells_nothing_sure_are_not_trusted(server, tmp_path, changes):
    source = broken_off(server, tmp_path)
    part = next(tmp_path.glob(".*.part"))
    part.write_bytes(b"x" * part.stat().st_size)  # so that trust would show
    note(tmp_path).write_text(json.dumps({**json.loads(note(tmp_path).read_text()), **changes}))
    assert download_file([source], tmp_path, QUICK).read_bytes() == DATA


def test_a_file_that_grew_under_the_same_tag_is_fetched_from_its_beginning(server, tmp_path):
    source, longer = broken_off(server, tmp_path), model_bytes(100_004)
    server.ways["paced"] = lambda request: request.give(longer)
    assert download_file([source], tmp_path, QUICK).read_bytes() == longer


def test_damaged_bytes_are_found_by_the_hash_and_fetched_again(server, tmp_path):
    source = broken_off(server, tmp_path, sha256=SHA256)
    part = next(tmp_path.glob(".*.part"))
    with part.open("r+b") as handle:
        handle.seek(600)
        handle.write(b"rotten")
    assert download_file([source], tmp_path, QUICK).read_bytes() == DATA


def test_another_mirror_goes_on_where_the_hash_is_known(server, tmp_path):
    source = broken_off(server, tmp_path, sha256=SHA256)
    server.ways["paced"] = lambda request: request.say(503) is None
    server.ways["mirror"] = lambda request: request.give(DATA, etag='"its own"')
    mirror, asked = replace(source, url=f"{server.url}/mirror/a.safetensors"), len(server.asked)
    assert download_file([source, mirror], tmp_path, QUICK).read_bytes() == DATA
    taken = [(path, headers["range"]) for path, headers in server.asked[asked:] if path.startswith("/mirror")]
    assert taken and all(not text.startswith("bytes=0-") for _, text in taken)


def test_what_a_permanent_failure_leaves_can_be_gone_on_with(server, tmp_path):
    source = broken_off(server, tmp_path)
    server.ways["paced"] = lambda request: request.say(403) is None
    with pytest.raises(DownloadRefused, match="403"):
        download_file([source], tmp_path, QUICK)
    del server.ways["paced"]
    asked = len(server.asked)
    assert download_file([source], tmp_path, QUICK).read_bytes() == DATA
    assert sent(server, asked) < len(DATA) - 100_000


def test_several_connections_fetch_a_large_file_and_keep_theirs(server, tmp_path):
    server.pace = 0.005
    final = download_file([Source(f"{server.url}/paced/a.safetensors")], tmp_path, QUICK)
    assert final.read_bytes() == DATA
    starts = [int(text.removeprefix("bytes=").split("-")[0]) for text in ranges(server)]
    assert sent(server) == len(DATA) and len(set(starts)) == len(starts)  # each stretch once
    assert len(server.connections) == 4


def test_a_small_file_takes_one_request(server, tmp_path):
    download_file(
        [Source(f"{server.url}/good/a.safetensors")], tmp_path, replace(QUICK, segment_bytes=len(DATA))
    )
    assert ranges(server) == [f"bytes=0-{len(DATA) - 1}"]


def test_an_address_that_expires_is_asked_for_again(server, tmp_path):
    """Hosts redirect to signed addresses that live for minutes; a large file takes hours."""
    signed = iter(range(100))
    server.ways["link"] = lambda request: request.say(302, location=f"/signed/{next(signed)}") is None

    def short_lived(request):
        return request.say(403) is None if request.number > 1 else request.give(DATA)

    server.ways["signed"] = short_lived
    final = download_file([Source(f"{server.url}/link/a.safetensors")], tmp_path, replace(QUICK, parts=1))
    assert final.read_bytes() == DATA and final.name == "a.safetensors"
    addresses = {path for path in server.paths() if path.startswith("/signed")}
    assert server.paths().count("/link/a.safetensors") == len(addresses) == 3
