"""The folder for Inference Endpoints, loaded as their toolkit loads it: in a process of its own, by its path."""

from __future__ import annotations

import base64
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_vit import make_vit, photos

from fastsd_lib import cli
from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.calibration_file import write_facts
from fastsd_lib.vit.endpoint.write import write_endpoint
from fastsd_lib.vit.model import open_model

#: As `check_and_register_custom_pipeline_from_directory` of huggingface-inference-toolkit does it. argv: the folder,
#: a file of requests, and whether fastsd_lib is to be hidden.
TOOLKIT = """
import importlib.util, json, sys
from pathlib import Path
folder, requests, hidden = sys.argv[1], sys.argv[2], sys.argv[3] == "hidden"
if hidden:
    class Nobody:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "fastsd_lib":
                raise ModuleNotFoundError(name)
    sys.meta_path.insert(0, Nobody())
    sys.path[:] = [place for place in sys.path if not (Path(place or ".") / "fastsd_lib").is_dir()]
    find = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *more: None if name == "fastsd_lib" else find(name, *more)
spec = importlib.util.spec_from_file_location("handler.EndpointHandler", Path(folder) / "handler.py")
sys.path.insert(0, folder)
module = importlib.util.module_from_spec(spec)
sys.modules["handler.EndpointHandler"] = module
spec.loader.exec_module(module)
handler = module.EndpointHandler(folder)
answers = []
for request in json.loads(Path(requests).read_text()):
    if "file" in request:  # what the toolkit's Imager makes of a body that is a picture
        from PIL import Image
        request["inputs"] = Image.open(request.pop("file")).convert("RGB")
    try:
        answers.append(handler(request))
    except Exception as error:
        answers.append({"error": str(error), "kind": type(error).__name__})
print("ANSWERS" + json.dumps({"by": handler.computed_by, "fastsd": "fastsd_lib" in sys.modules, "answers": answers}))
"""


TEMPERATURE = 2.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    model = make_vit(tmp_path_factory.mktemp("vit") / "animals")
    write_facts(model, temperature=TEMPERATURE)
    return write_endpoint(open_model(model), tmp_path_factory.mktemp("endpoint") / "animals")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    return photos(tmp_path_factory.mktemp("photos"), 5)


@pytest.fixture(scope="module")
def told(folder, pictures) -> dict:
    """Answers of the folder alone, to all requests of this file: starting the process is what takes long."""
    return _asked(folder, [*_good(pictures), *_bad(pictures)])


def _good(pictures: list[Path]) -> list[dict]:
    softmax = {"function_to_apply": "softmax"}
    return [
        {"file": str(pictures[0]), "parameters": softmax},
        {"inputs": _text(pictures[1]), "parameters": {"top_k": 2, **softmax}},
        {"inputs": [_text(one) for one in pictures], "parameters": softmax},
        {
            "inputs": "data:image/jpeg;base64," + _text(pictures[2]),
            "parameters": {"function_to_apply": "none"},
        },
        {"inputs": _text(pictures[2])},
    ]


def _bad(pictures: list[Path]) -> list[dict]:
    good = _text(pictures[0])
    return [
        {},
        {"inputs": str(pictures[0])},
        {"inputs": "https://example.org/cat.jpg"},
        {"inputs": base64.b64encode(b"no picture").decode()},
        {"inputs": []},
        {"inputs": [good] * 65},
        {"inputs": {"image": "x"}},
        {"inputs": good, "parameters": {"top_k": 0}},
        {"inputs": good, "parameters": {"top_k": "3"}},
        {"inputs": good, "parameters": {"top_k": True}},
        {"inputs": good, "parameters": {"function_to_apply": "exec"}},
        {"inputs": good, "parameters": {"images": "/etc/passwd"}},
    ]


def _asked(folder: Path, requests: list, *, hidden: bool = True) -> dict:
    file = folder.parent / f"requests{'-hidden' if hidden else ''}.json"
    file.write_text(json.dumps(requests))
    command = [sys.executable, "-c", TOOLKIT, str(folder), str(file), "hidden" if hidden else "shown"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder if hidden else None, timeout=240, check=False
    )
    assert "ANSWERS" in done.stdout, done.stderr[-2000:]
    return json.loads(done.stdout.partition("ANSWERS")[2]) | {"log": done.stderr[-2000:]}


def _text(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


def test_the_folder_answers_what_the_pipeline_of_transformers_answers(told, folder, pictures):
    from transformers import pipeline

    assert (told["by"], told["fastsd"]) == ("transformers", False)
    witness = pipeline("image-classification", model=str(folder))
    wanted = [witness(str(one)) for one in pictures]
    one, two, all_, plain, _ = told["answers"][:5]
    _same(one, wanted[0])
    _same(two, wanted[1][:2])
    for found, expected in zip(all_, wanted, strict=True):
        _same(found, expected)
    _same(plain, witness(str(pictures[2]), function_to_apply="none"))


def test_with_fastsd_lib_the_same_labels_come_from_its_runner(told, folder, pictures):
    fast = _asked(folder, _good(pictures), hidden=False)
    assert fast["by"] != "transformers" and fast["fastsd"], fast["log"]
    for found, expected in zip(fast["answers"][2], told["answers"][2], strict=True):
        _same(found, expected, 0.02)  # bf16 where the processor computes with it


def test_bad_requests_are_refused_in_a_sentence_and_never_read_as_paths(told, pictures):
    bad = _bad(pictures)
    for request, answer in zip(bad, told["answers"][-len(bad) :], strict=True):
        assert isinstance(answer, dict) and answer["kind"] == "ValueError", (request, answer)


def test_scores_are_calibrated_as_the_model_was(told):
    logits, scores = told["answers"][3:5]
    powers = {one["label"]: math.exp(one["score"] / TEMPERATURE) for one in logits}
    for one in scores:
        assert one["score"] == pytest.approx(powers[one["label"]] / sum(powers.values()), abs=1e-6)


def test_an_endpoint_is_written_again_but_nothing_else_is_overwritten(folder, tmp_path):
    model = open_model(folder)  # the folder itself is a model in transformers' layout
    again = write_endpoint(model, tmp_path / "again")
    assert write_endpoint(model, again) == again
    of_imports = {"__pycache__"}  # other tests import the handler
    made = {one.name for one in folder.iterdir()} - of_imports
    assert {one.name for one in again.iterdir()} == made
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files") as caught:
        write_endpoint(model, tmp_path / "other")
    assert "new folder" in caught.value.fix
    assert (tmp_path / "other" / "thesis.txt").read_text() == "mine"


def test_the_command_line_writes_one_and_says_what_to_do_with_it(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["vit", "export", "--format", "endpoint", "--model", str(folder), "--out", str(out)]) == 0
    assert "push this folder" in capsys.readouterr().out
    assert {"handler.py", "model.safetensors", "requirements.txt", "README.md"} <= {
        one.name for one in out.iterdir()
    }
    (folder / "model.safetensors").rename(folder / "weights")
    try:
        with pytest.raises(UserError, match="no weights") as caught:
            write_endpoint(replace(open_model(out), path=folder), tmp_path / "none")
        assert "not an export" in caught.value.fix
    finally:
        (folder / "weights").rename(folder / "model.safetensors")


def _same(found: list, expected: list, within: float = 1e-5) -> None:
    scores = {one["label"]: one["score"] for one in expected}
    assert {one["label"] for one in found} == set(scores)
    for one in found:
        assert one["score"] == pytest.approx(scores[one["label"]], abs=within)
