"""What was seen in a picture, and files of it: CSV, JSON lines and Parquet, written as the answers come."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastsd_lib.core.errors import UserError, require
from fastsd_lib.core.files import atomic_path, plain_disk_errors

ROWS_AT_ONCE = 1024  # of a Parquet file


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one picture, best first; none where it could not be read."""

    key: str
    labels: tuple[str, ...]
    scores: tuple[float, ...]  # probabilities, calibrated where the model's temperature is known
    error: str = ""
    entropy: float = 0.0  # of all classes, in nats: 0 = certain, log(classes) = no idea

    @property
    def confidence(self) -> float:
        """The probability of the first class; 0 where there is none."""
        return self.scores[0] if self.scores else 0.0

    @property
    def label(self) -> str:
        return self.labels[0] if self.labels else ""


@dataclass(frozen=True)
class Summary:
    """What was written."""

    path: Path
    pictures: int  # all rows, bad ones too
    bad: int  # rows with an error


def probabilities(logits: np.ndarray, *, multi_label: bool, temperature: float | None = None) -> np.ndarray:
    """Logits (..., classes) as float64 probabilities: a softmax, or a sigmoid for each class where several may be true.

    Dividing by the temperature first makes them mean what they say (Guo et al. 2017).
    """
    scaled = np.asarray(logits, np.float64) / (temperature or 1.0)
    if multi_label:
        return 1.0 / (1.0 + np.exp(-np.clip(scaled, -700, 700)))
    scaled = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return scaled / scaled.sum(axis=-1, keepdims=True)


def predict(
    key: str,
    logits: np.ndarray,
    labels: tuple[str, ...],
    *,
    top_k: int,
    threshold: float = 0.0,
    multi_label: bool = False,
    temperature: float | None = None,
) -> Prediction:
    """The `top_k` likeliest of `labels` that reach `threshold`. Ties keep the order of the classes."""
    shares = probabilities(logits, multi_label=multi_label, temperature=temperature)
    best = [int(one) for one in np.argsort(-shares, kind="stable")[:top_k] if shares[one] >= threshold]
    return Prediction(
        key, tuple(labels[one] for one in best), tuple(float(shares[one]) for one in best),
        entropy=entropy(shares, multi_label=multi_label),
    )  # fmt: skip


def entropy(shares: np.ndarray, *, multi_label: bool = False) -> float:
    """Of probabilities (classes,), in nats; of several yes-or-no questions, their sum."""
    held = [shares, 1.0 - shares] if multi_label else [shares]
    return float(sum(-(one[one > 0] * np.log(one[one > 0])).sum() for one in held)) + 0.0


def write_predictions(predictions: Iterable[Prediction], path: Path, *, top_k: int = 5) -> Summary:
    """Write each prediction as it comes; the file gets its name when it is whole. By suffix: .csv, .jsonl, .parquet.

    A picture that could not be read is a row with its error. `top_k`: how many classes a row of CSV has room for.
    """
    path = Path(path)
    if path.suffix.lower() not in WRITERS:
        raise UserError(
            f"Predictions are not written as {path.suffix or 'a file without suffix'}.",
            fix=f"name a file that ends in {', '.join(WRITERS)}.",
        )
    pictures = bad = 0
    with plain_disk_errors(f"write {path.name}"), atomic_path(path) as scratch:
        with WRITERS[path.suffix.lower()](scratch, top_k) as write:
            for prediction in predictions:
                write(prediction)
                pictures += 1
                bad += bool(prediction.error)
    return Summary(path, pictures, bad)


Write = Callable[[Prediction], None]


@contextmanager
def _csv(path: Path, top_k: int) -> Iterator[Write]:
    numbers = [""] + [f"_{place}" for place in range(2, top_k + 1)]
    with path.open("w", encoding="utf-8", newline="") as handle:
        out = csv.writer(handle)
        classes = [name for number in numbers for name in (f"label{number}", f"score{number}")]
        out.writerow(["key", *classes, "entropy", "error"])

        def write(one: Prediction) -> None:
            pairs = list(zip(one.labels, one.scores, strict=True))[:top_k]
            cells: list[Any] = [cell for label, score in pairs for cell in (label, _short(score))]
            cells += [""] * (2 * top_k - len(cells))
            out.writerow([one.key, *cells, "" if one.error else _short(one.entropy), one.error])

        yield write


@contextmanager
def _json_lines(path: Path, top_k: int) -> Iterator[Write]:
    with path.open("w", encoding="utf-8", newline="\n") as handle:

        def write(one: Prediction) -> None:
            handle.write(json.dumps(_row(one), ensure_ascii=False) + "\n")

        yield write


@contextmanager
def _parquet(path: Path, top_k: int) -> Iterator[Write]:
    require("pyarrow", group="vit")
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.schema(
        {
            "key": pyarrow.string(),
            "labels": pyarrow.list_(pyarrow.string()),
            "scores": pyarrow.list_(pyarrow.float64()),
            "entropy": pyarrow.float64(),
            "error": pyarrow.string(),
        }
    )
    rows: list[dict[str, Any]] = []
    with parquet.ParquetWriter(path, schema, compression="zstd") as file:

        def flush() -> None:
            file.write_table(pyarrow.Table.from_pylist(rows, schema))
            rows.clear()

        def write(one: Prediction) -> None:
            rows.append(_row(one))
            if len(rows) >= ROWS_AT_ONCE:
                flush()

        yield write
        if rows:
            flush()


WRITERS = {".csv": _csv, ".jsonl": _json_lines, ".parquet": _parquet}


def _row(one: Prediction) -> dict[str, Any]:
    return {
        "key": one.key,
        "labels": list(one.labels),
        "scores": [round(score, 6) for score in one.scores],
        "entropy": None if one.error else round(one.entropy, 6),
        "error": one.error or None,
    }


def _short(number: float) -> str:
    return "" if math.isnan(number) else f"{number:.6g}"
