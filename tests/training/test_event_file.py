import json
import math
import subprocess
import sys

import pytest

from fastsd_lib.training.event_file import EventFile, crc32c
from fastsd_lib.training.run_log import RunLog

# TensorBoard's own reader, in a process of its own: its protobuf must not meet what other tests loaded.
READ = """
import json, sys, types
sys.modules["tensorboard.compat.notf"] = types.ModuleType("tensorboard.compat.notf")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
read = EventAccumulator(sys.argv[1]).Reload()
print(json.dumps({
    tag: [[event.step, repr(event.value)] for event in read.Scalars(tag)]
    for tag in read.Tags()["scalars"]
}))
"""


def read(folder):
    asked = subprocess.run([sys.executable, "-c", READ, folder], capture_output=True, text=True, timeout=120)
    assert asked.returncode == 0, asked.stderr
    found = json.loads(asked.stdout)
    return {tag: [(step, float(value)) for step, value in events] for tag, events in found.items()}


def test_tensorboard_reads_every_scalar(tmp_path):
    file = EventFile(tmp_path, first_step=1)
    for step, value in ((1, 0.5), (127, -1.25), (128, 1e-8), (70_000, 3e38), (70_001, 1e300)):
        file.add_scalar("unet/loss", value, step)
    file.add_scalar("Lernrate für Ü", float("nan"), 3)
    file.close()
    found = read(tmp_path)
    assert [step for step, _ in found["unet/loss"]] == [1, 127, 128, 70_000, 70_001]
    assert [value for _, value in found["unet/loss"]] == pytest.approx([0.5, -1.25, 1e-8, 3e38, math.inf])
    assert [step for step, _ in found["Lernrate für Ü"]] == [3] and math.isnan(found["Lernrate für Ü"][0][1])


def test_a_repeated_step_is_told_once(tmp_path):
    with RunLog(tmp_path, first_step=0) as log:
        for step in (1, 2, 3, 4):
            log.write(step, "unet", step, 6, {"loss": 1.0})
    with RunLog(tmp_path, first_step=2) as log:
        for step in (3, 4, 5):
            log.write(step, "unet", step, 6, {"loss": 0.25, "eta_s": 9.0})
    assert read(tmp_path) == {"unet/loss": [(1, 1.0), (2, 1.0), (3, 0.25), (4, 0.25), (5, 0.25)]}


def test_a_reader_sees_what_was_flushed_and_a_torn_end_costs_no_more(tmp_path):
    file = EventFile(tmp_path, first_step=1)
    file.add_scalar("unet/loss", 0.5, 1)
    file.flush()
    assert read(tmp_path) == {"unet/loss": [(1, 0.5)]}
    file.add_scalar("unet/loss", 0.25, 2)
    file.close()
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    assert read(tmp_path) == {"unet/loss": [(1, 0.5)]}


@pytest.mark.parametrize(
    ("content", "expected"),  # RFC 3720, appendix B.4
    [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_the_checksum_is_that_of_the_standard(content, expected):
    assert crc32c(content) == expected
