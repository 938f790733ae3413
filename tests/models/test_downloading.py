"""Downloads from a server that behaves badly in every way: the file whole, or one line that says why not."""

from __future__ import annotations

import hashlib
import re
import shutil
import socket
import ssl
import threading
from collections import namedtuple
from contextlib import contextmanager
from dataclasses import replace

import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.models.downloading import (
    DownloadRefused,
    DownloadRules,
    DownloadStopped,
    Source,
    download_file,
)
from tests.bad_server import QUICK, bad_server, certificate, model_bytes

DATA = model_bytes()
RULES = replace(QUICK, most_bytes=2_000_000, segment_bytes=64 << 10)
STALLS = ("drip", "slow-headers", "silent")  # where a try ends by waiting: it is not waited for long


@pytest.fixture(scope="module")
def server():
    with bad_server(DATA) as bad:
        yield bad


def fetched(server, way, folder, rules=RULES, **known):
    return download_file([Source(f"{server.url}/{way}", **known)], folder, rules)


@contextmanager
def pace(server, rest_s):
    server.pace = rest_s
    try:
        yield
    finally:
        server.pace = 0.0


@pytest.mark.parametrize(
    ("way", "name"),
    [
        ("good/a.safetensors", "a.safetensors"),
        ("good/a%20b.safetensors?x=1#y", "a b.safetensors"),
        ("plain/a.safetensors", "a.safetensors"),
        ("untold/a.safetensors", "a.safetensors"),
        ("chunked/a.safetensors", "a.safetensors"),
        ("untagged/a.safetensors", "a.safetensors"),
        ("weak/a.safetensors", "a.safetensors"),
        ("hops/5", "5.safetensors"),
        ("redirect?to=/good/there.safetensors", "redirect.safetensors"),
        ("busy-once/a.safetensors", "a.safetensors"),
        ("busy-until/a.safetensors", "a.safetensors"),
        ("down-once/a.safetensors", "a.safetensors"),
        ("breaks/a.safetensors", "a.safetensors"),
        ("one-line/a.safetensors", "a.safetensors"),
        ("wrong-name/..", ""),
        ("traversal/a", "evil.safetensors"),
        ("backslashes/a", "evil.safetensors"),
        ("starred/a", "naïve ✓.safetensors"),
        ("nul/a", "abc.safetensors"),
        ("device/a", "photo CON.safetensors"),
        ("long-name/a", "n" * 150 + ".safetensors"),
        ("good/", "good.safetensors"),
        ("good/model.ckpt", "model.safetensors"),
        ("good/v1.5", "v1.5.safetensors"),
    ],
)  # fmt: skip
def test_a_whole_file_arrives_under_a_name_that_is_no_path(server, tmp_path, way, name):
    if not name:
        server.ways["wrong-name"] = lambda r: r.give(DATA)
        name = re.compile(r"download-[0-9a-f]{8}\.safetensors")
    final = fetched(server, way, tmp_path / "in")
    assert final.read_bytes() == DATA
    assert [path.name for path in (tmp_path / "in").iterdir()] == [final.name]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert re.fullmatch(name, final.name) if isinstance(name, re.Pattern) else final.name == name


@pytest.mark.parametrize(
    ("way", "why"),
    [
        ("page", r'gives a web page in place of the file: "Google Drive - Quota exceeded & more"\.'),
        ("page-named-model/a.safetensors", "gives a web page in place of the file"),
        ("short", r"broke off after 40,\d+ of 80,\d+ bytes"),
        ("chunked-short", r"does not speak proper HTTP \(IncompleteRead\)"),
        ("etag-each-time", "has another file now, time and again|gives the file only from its beginning now"),
        ("unauthorised", r"wants you to sign in \(401\)"),
        ("forbidden", r"does not let you have this file \(403\)"),
        ("missing", r"has no such file \(404\)"),
        ("gone", r"has no such file \(410\)"),
        ("teapot", "answers 418"),
        ("busy-long", r"has had too many requests and wants 86,400 s of rest \(429\)"),
        ("down", r"has trouble \(503\)"),
        ("huge", "gives 1,000,000.0 GB or more, and at most 0.0 GB are taken"),
        ("large", "gives 300.0 GB or more"),
        ("endless", "gives 0.0 GB or more, and at most 0.0 GB are taken"),
        ("drip", "gave next to nothing for 0.5 s"),
        ("slow-headers", "gave next to nothing for 0.5 s"),
        ("silent", "gave next to nothing for 0.5 s|does not answer in time"),
        ("giant-header", r"does not speak proper HTTP \(LineTooLong\)"),
        ("many-headers", r"does not speak proper HTTP \(HTTPException\)"),
        ("garbage", r"does not speak proper HTTP \(BadStatusLine\)"),
        ("nothing", "broke the connection"),
        ("gzip", r"sends the file packed \(gzip\)"),
        ("empty", "gives an empty file"),
        ("wrong-part", "answers with other bytes than those it was asked for, time and again|does not describe"),
        ("long-part", "answers with other bytes|does not describe"),
        ("nameless-part", "answers with a part that it does not describe"),
        ("part-of-star", "answers with a part that it does not describe"),
        ("not-satisfiable", r"has a shorter file now \(416\), time and again"),
        ("loop", "leads through more than 5 redirects"),
        ("hops/50", "leads through more than 5 redirects"),
        ("redirect?to=file:///etc/passwd", "is not a plain https address"),
        ("redirect?to=ftp://files.example/x", "is not a plain https address"),
        ("redirect?to=http://%00/", "is not|cannot|has a host that is not known"),
        ("redirect?to=https://user:pw@files.example/x", "is not a plain https address"),
    ],
)  # fmt: skip
def test_what_is_no_whole_file_leaves_one_line_and_nothing_else(server, tmp_path, way, why):
    with pytest.raises(DownloadRefused, match=why) as caught:
        fetched(server, way, tmp_path, replace(RULES, stall_s=0.5) if way in STALLS else RULES)
    assert list(tmp_path.iterdir()) == []
    assert "\n" not in caught.value.message and caught.value.message.startswith(server.url)
    assert caught.value.fix.endswith(".")


def test_a_server_that_asks_for_a_second_of_rest_gets_it(server, tmp_path):
    before = len(server.times)
    assert fetched(server, "busy-a-second/a.safetensors", tmp_path).read_bytes() == DATA
    first, second = server.times[before : before + 2]
    assert second - first >= 1


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "ftp://example.org/a", "http://example.org/a", "https://", "https://[::1", "//a/b", "a",
        "https://user:geheim@example.org/a", "https://example.org/a\r\nx: y", "https://127.0.0.1/a",
        "https://2130706433/a", "https://0x7f.1/a", "https://[::1]/a", "https://[::ffff:10.0.0.1]/a",
        "https://[64:ff9b::7f00:1]/a", "https://169.254.169.254/latest/meta-data", "https://localhost/a",
    ],
)  # fmt: skip
def test_addresses_that_are_no_public_https_ones_are_not_asked(tmp_path, url):
    with pytest.raises(
        DownloadRefused, match=r"is not a plain https address|is no address|leads to this machine"
    ) as caught:
        download_file([Source(url)], tmp_path, DownloadRules(tries=1))
    assert "geheim" not in str(caught.value) and list(tmp_path.iterdir()) == []


@pytest.fixture
def internet(monkeypatch, tmp_path):
    """A TLS server that stands at 1.1.1.1 under any name but inside.example, which is an address of this network."""
    file, tls = certificate(tmp_path)
    dialled = []

    def dial(address, timeout):
        dialled.append(address)
        plain = socket.socket()
        plain.settimeout(timeout)
        plain.connect(("127.0.0.1", port))
        return plain

    def resolve(host, port, **more):
        return [
            (
                socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                "",
                ("10.0.0.7" if host == "inside.example" else "1.1.1.1", port),
            )
        ]

    with bad_server(DATA, tls) as bad:
        port = int(bad.url.rpartition(":")[2])
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        monkeypatch.setattr(socket, "create_connection", dial)
        rules = replace(
            RULES,
            http_allowed=False,
            private_allowed=False,
            ssl_context=ssl.create_default_context(cafile=str(file)),
        )
        Internet = namedtuple("Internet", "server rules dialled")
        yield Internet(bad, rules, dialled)


def test_the_public_https_server_is_dialled_by_its_address_and_its_certificate_counts(internet, tmp_path):
    final = download_file(
        [Source("https://files.example/good/m.safetensors")], tmp_path / "a", internet.rules
    )
    assert final.read_bytes() == DATA and set(internet.dialled) == {("1.1.1.1", 443)}
    with pytest.raises(DownloadRefused, match=r"cannot show that it is who it says \(certificate\)"):
        download_file([Source("https://stranger.example/good/m.safetensors")], tmp_path / "b", internet.rules)


@pytest.mark.parametrize(
    ("to", "why"),
    [
        ("https://inside.example/good", "leads to this machine or its network"),
        ("https://files.example/redirect?to=https%3A%2F%2Finside.example/good", "leads to this machine"),
        ("http://other.example/good", "redirects from https to http"),
        ("file:///etc/passwd", "is not a plain https address"),
    ],
)
def test_every_redirect_is_looked_at_like_the_first_address(internet, tmp_path, to, why):
    rules = replace(internet.rules, http_allowed=True)
    with pytest.raises(DownloadRefused, match=why):
        download_file(
            [Source(f"https://files.example/redirect?to={to.replace('?', '%3F')}")], tmp_path / "a", rules
        )
    assert {address for address, _ in internet.dialled} == {"1.1.1.1"}


def test_a_secret_is_for_its_own_host_and_in_no_message(internet, tmp_path):
    secret = {"Authorization": "Bearer geheim"}
    rules = replace(internet.rules, segment_bytes=16 << 10)
    for to in ("https://other.example/good/m.safetensors", "/good/m.safetensors"):
        download_file(
            [Source(f"https://files.example/redirect?to={to}", headers=secret)], tmp_path / "a", rules
        )
    heard = [
        (headers["host"], path.split("?")[0], headers.get("authorization"))
        for path, headers in internet.server.asked
    ]
    assert {row for row in heard if row[0] == "other.example"} == {
        ("other.example", "/good/m.safetensors", None)
    }
    assert {row[2] for row in heard if row[0] == "files.example"} == {"Bearer geheim"}
    with pytest.raises(DownloadRefused) as caught:
        source = Source("https://files.example/missing?token=geheim&id=7", headers=secret)
        download_file([source], tmp_path / "b", internet.rules)
    assert "geheim" not in str(caught.value) + repr(source.headers is None) and "token=***&id=7" in str(
        caught.value
    )


def test_mirrors_are_tried_in_order_and_each_reason_is_told(server, tmp_path):
    sources = [
        Source(f"{server.url}/{way}") for way in ("missing/a", "page/b", "good/c.safetensors", "good/never")
    ]
    assert download_file(sources, tmp_path / "a", RULES).name == "c.safetensors"
    with pytest.raises(
        DownloadRefused,
        match=r"None of 2 addresses .*missing/a has no such file .*; .*page/b gives a web page",
    ):
        download_file(sources[:2], tmp_path / "b", RULES)
    assert list((tmp_path / "b").iterdir()) == []
    with pytest.raises(DownloadRefused, match="no address to fetch from"):
        download_file([], tmp_path)


def test_what_is_known_of_the_file_before_must_be_true(server, tmp_path):
    sha256 = hashlib.sha256(DATA).hexdigest()
    with pytest.raises(DownloadRefused, match=r"gives another file than expected \(SHA-256 " + sha256[:12]):
        fetched(server, "good/a.safetensors", tmp_path, sha256="0" * 64)
    with pytest.raises(DownloadRefused, match=f"gives {len(DATA):,} bytes where 7 are expected"):
        fetched(server, "good/a.safetensors", tmp_path, size_bytes=7)
    assert list(tmp_path.iterdir()) == []
    final = fetched(
        server, "good/a", tmp_path, sha256=sha256.upper(), size_bytes=len(DATA), name="../mine.safetensors"
    )
    assert final == tmp_path / "mine.safetensors"
    asked = len(server.asked)  # it is known by its hash: nobody is asked
    assert fetched(server, "good/a", tmp_path, sha256=sha256, name="mine.safetensors") == final
    assert len(server.asked) == asked


def test_the_hash_that_hugging_face_tells_on_the_way_is_compared(server, tmp_path):
    server.ways["hub"] = lambda r: (
        r.say(302, location="/good/m.safetensors", x_linked_etag=f'"{r.path[5:]}"') is None
    )
    assert fetched(server, f"hub/{hashlib.sha256(DATA).hexdigest()}", tmp_path / "a").read_bytes() == DATA
    with pytest.raises(DownloadRefused, match="gives another file than expected"):
        fetched(server, f"hub/{'1' * 64}", tmp_path / "b")


def test_no_file_is_written_over(server, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"mine")
    final = fetched(server, "good/a.safetensors", tmp_path)
    assert (final.name, final.read_bytes()) == ("a-2.safetensors", DATA)
    (tmp_path / "a.safetensors").write_bytes(DATA)
    assert (
        fetched(server, "plain/a.safetensors", tmp_path).name == "a.safetensors"
    )  # the very same: no third one
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-2.safetensors", "a.safetensors"]


def test_the_suffix_is_that_of_the_content(server, tmp_path):
    contents = {
        "p": b"\x80\x02}q\x00." * 9,
        "z": b"PK\x03\x04" + bytes(600),
        "g": b"GGUF" + bytes(600),
        "t": b"plain words",
    }
    server.ways["bytes"] = lambda r: r.give(contents[r.path.split("/")[2]])
    names = {
        way: fetched(server, f"bytes/{way}", tmp_path).name
        for way in ("p/a.safetensors", "p/b.ckpt", "z/c.pth", "g/d", "t/e.yaml")
    }
    assert list(names.values()) == ["a.pt", "b.ckpt", "c.pth", "d.gguf", "e.yaml"]


def test_a_disk_that_is_too_full_is_told_before_a_byte_comes_and_meanwhile(server, tmp_path, monkeypatch):
    rules, usage = replace(RULES, most_bytes=10**18), namedtuple("usage", "total used free")
    with pytest.raises(UserError, match=r"GB free, and 1,000,000\.1 GB are needed") as caught:
        download_file([Source(f"{server.url}/huge"), Source(f"{server.url}/good/a")], tmp_path, rules)
    assert "free some space" in caught.value.fix and list(tmp_path.iterdir()) == []
    free = iter([10**9] * 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, next(free, 10**6)))
    with pytest.raises(UserError, match=r"0\.0 GB free"):
        download_file([Source(f"{server.url}/drip")], tmp_path, RULES)
    assert list(tmp_path.iterdir()) == []


def test_progress_tells_bytes_and_speed_and_a_stop_is_heard_at_once(server, tmp_path):
    events, asked = [], threading.Event()

    def report(event):
        events.append(event)
        asked.set()

    source = [Source(f"{server.url}/paced/a.safetensors")]
    with pace(server, 0.4), pytest.raises(DownloadStopped, match="was stopped") as caught:
        download_file(source, tmp_path, RULES, report, asked.is_set)
    assert "goes on where it stopped" in caught.value.fix
    event = events[0]
    assert event.task == "download a.safetensors" and 0 < event.done < event.total == len(DATA)
    assert re.fullmatch(r"0 of 0 MB, 0\.\d MB/s", event.facts[""]) and event.facts["bytes_per_s"] > 0
    before = len(server.asked)
    assert download_file(source, tmp_path, RULES).read_bytes() == DATA
    assert server.asked[before][1]["range"] != f"bytes=0-{RULES.segment_bytes - 1}"


def test_two_programs_do_not_write_one_file(server, tmp_path):
    """The first is held back until the second was refused."""
    inside, refused = threading.Event(), threading.Event()
    server.ways["held"] = lambda r: refused.wait(20) and r.give(DATA)
    source = [Source(f"{server.url}/held/a.safetensors")]
    other = threading.Thread(
        target=download_file,
        args=(source, tmp_path, replace(RULES, stall_s=20)),
        kwargs={"should_stop": lambda: inside.set() or False},
    )
    other.start()
    try:
        assert inside.wait(10)
        with pytest.raises(UserError, match="Another program is fetching this very file"):
            download_file(source, tmp_path, RULES)
    finally:
        refused.set()
        other.join()
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
