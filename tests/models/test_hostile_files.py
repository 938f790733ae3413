"""Files that mean harm or have come to it: each is refused with its own line, soon, in little memory, and nothing runs.

All are read by one small process that forks for each, so that time and memory are those of a single file.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_files import CASES

SECONDS, MEBIBYTES = 2.0, 200  # per file; processor time, which a busy machine does not change

JUDGE = """
import json, os, resource, signal, sys, time
from pathlib import Path
from fastsd_lib.core.errors import UserError
from fastsd_lib.models.identify import describe, identify
from fastsd_lib.models.verifying import verify_file
import numpy

def told(path):
    said = []
    for ask in (describe, identify):
        try:
            ask(path)
            said.append(["accepted", ""])
        except UserError as error:
            said.append([error.message, error.fix])
    return said, list(verify_file(path).problems)

def judged(path):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
        signal.alarm(60)  # a pipe that nobody writes to takes no processor time
        said, problems = told(path)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        answer = [said, problems, usage.ru_utime + usage.ru_stime, usage.ru_maxrss // 1024]
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else None

print(json.dumps({name: judged(Path(path)) for name, path in json.load(sys.stdin).items()}))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[dict[str, Path], Path]:
    root = tmp_path_factory.mktemp("hostile")
    sign = root / "it-ran"
    paths = {}
    for number, (name, case) in enumerate(CASES.items()):
        folder = root / str(number)
        folder.mkdir()
        paths[name] = case.make(folder, sign)
    return paths, sign


@pytest.fixture(scope="module")
def judged(made) -> dict[str, list]:
    given = json.dumps({name: str(path) for name, path in made[0].items()})
    done = subprocess.run(
        [sys.executable, "-c", JUDGE], input=given, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_there_are_more_than_thirty():
    assert len(CASES) > 30


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_with_its_own_line_soon_and_in_little_memory(made, judged, name):
    assert judged[name] is not None, "no answer: it crashed, or hung"
    said, problems, seconds, mebibytes = judged[name]
    for message, fix in said:
        assert CASES[name].said in message or CASES[name].late
        assert fix and "\n" not in message and len(message) < 900
        assert not any(ord(letter) < 32 or letter in "\u202e\x7f" for letter in message)
    assert problems and CASES[name].said in " ".join([str(made[0][name]), *problems]).replace(" :", ":")
    assert seconds < 3 * SECONDS  # it was asked three times
    assert mebibytes < MEBIBYTES


def test_nothing_was_run(made, judged):
    assert judged and not made[1].exists()
    unpickled = subprocess.run(
        [sys.executable, "-c", "import pickle, sys; pickle.loads(open(sys.argv[1], 'rb').read())",
         made[0]["a bare pickle"]],
        capture_output=True,
    )  # fmt: skip
    assert made[1].exists(), f"the command in these files does nothing: {unpickled.stderr[-300:]}"
    made[1].unlink()


def test_folders_that_cannot_be_opened_are_said_to_be(tmp_path, monkeypatch):
    from fastsd_lib.core.errors import UserError
    from fastsd_lib.models.identify import describe

    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(100))
    path.chmod(0)
    try:
        path.read_bytes()
        pytest.skip("this user may read everything")
    except PermissionError:
        pass
    with pytest.raises(UserError, match="cannot be read: Permission denied") as error:
        describe(path)
    assert "who may read it" in error.value.fix
