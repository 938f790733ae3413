"""What a ViT server must refuse and survive: each request alone, and all of them beside honest clients."""

from __future__ import annotations

import resource
import socket
import threading
import time

import pytest
from vit_serving import asking, hostile, make_vit, photos, served

BODY_MIB = 4
REQUESTS = hostile.hostile_requests(BODY_MIB << 20)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    model = make_vit(tmp_path_factory.mktemp("model") / "vit")
    with served(model, body_mib=BODY_MIB, silence_s=0.5, body_s=2.0) as found:
        yield found


def test_there_are_at_least_thirty_of_them():
    assert len({one.name for one in REQUESTS}) == len(REQUESTS) >= 30


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda one: one.name)
def test_it_is_refused_in_a_sentence(running, request_):
    status, told = hostile.send(running.server.port, request_)
    if request_.silent and not told:
        assert status in (hostile.SILENCE, 400)  # the HTTP parser's own answer
        return
    assert 400 <= status < 500, (status, told)
    assert told["error"] and "Traceback" not in str(told)
    assert status != 422 or told["request_id"]
    assert "root:" not in str(told)  # nobody read /etc/passwd


def test_a_body_that_drips_is_given_up(running):
    with socket.create_connection(("127.0.0.1", running.server.port), timeout=20) as line:
        line.sendall(
            b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: 9999\r\n\r\n"
        )
        began, raw = time.monotonic(), b""

        def drip() -> None:
            for _ in range(100):
                try:
                    line.sendall(b"x")
                except OSError:
                    return
                time.sleep(0.1)  # never silent for long, never done

        threading.Thread(target=drip, daemon=True).start()
        while b"\r\n\r\n" not in raw:
            raw += line.recv(65536)
        assert b" 408 " in raw.split(b"\r\n")[0] and time.monotonic() - began < 8


def test_honest_clients_are_answered_meanwhile_and_memory_stays_small(running, tmp_path):
    file = photos(tmp_path, 1)[0].read_bytes()
    jpeg = {"content-type": "image/jpeg"}
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wrong: list[str] = []
    attack = threading.Thread(
        target=lambda: wrong.extend(hostile.refusals(running.server.port, BODY_MIB << 20)), daemon=True
    )
    with asking(running) as client:
        wanted = client.post("/", content=file, headers=jpeg).json()
        attack.start()
        while attack.is_alive():
            answer = client.post("/", content=file, headers=jpeg)
            assert answer.status_code == 200
            assert [one["label"] for one in answer.json()] == [one["label"] for one in wanted]
        assert client.get("/health").text == "Ok"
    assert wrong == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 300 * 1024
    assert running.service.under_way == 0
