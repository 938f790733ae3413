"""ViT experiments, one function per step: the rooms of `vit/` arranged for scripts, the notebook and `fastsd vit`.

    from fastsd_lib.workflows import vit
    for prediction in vit.classify("photos/", "google/vit-base-patch16-224"):
        print(prediction.key, prediction.labels[0], prediction.scores[0])

A model is named by "embedded", an alias, a Hugging Face id, a folder that transformers wrote, or the folder of a
training (`train`'s `out`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsd_lib.core.files import atomic_path
from fastsd_lib.core.paths import expanded
from fastsd_lib.core.progress import Report, silent
from fastsd_lib.vit.config import ClassifyConfig, RunnerConfig
from fastsd_lib.webui.vit_server.config import ServeConfig
from fastsd_lib.workflows.vit_compress import endpoint, export, quantize
from fastsd_lib.workflows.vit_model import EMBEDDED, open_model
from fastsd_lib.workflows.vit_pictures import sample_data
from fastsd_lib.workflows.vit_search import clusters, duplicates, embed, index, outliers, search
from fastsd_lib.workflows.vit_train import evaluate, headline, probe, train

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastsd_lib.vit.model import VitModel
    from fastsd_lib.vit.predictions import Prediction, Summary
    from fastsd_lib.webui.vit_server.running import Running

__all__ = [  # what scripts may call: `from fastsd_lib.workflows import vit`
    "classify", "clusters", "duplicates", "embed", "endpoint", "evaluate", "explain", "export", "headline", "index",
    "open_model", "outliers", "probe", "quantize", "sample_data", "search", "serve", "train", "write_predictions",
]  # fmt: skip


def classify(
    what: Any,
    model: str | Path | VitModel = EMBEDDED,
    config: ClassifyConfig | None = None,
    runner: RunnerConfig | None = None,
    report: Report = silent,
) -> Iterator[Prediction]:
    """What is on each picture, in the order given, read ahead while the model computes.

    `what`: a file, folder, glob, zip, https address, PIL image, array, bytes, or a list of these. A picture that
    cannot be read is a prediction with an `error`. UserError for what is not there at all.
    """
    from fastsd_lib.vit.sources import count_of

    count_of(what)  # what is not there is said before a model takes its seconds
    opened = open_model(model)
    from fastsd_lib.vit.classify import Classifier

    with Classifier(opened, runner or RunnerConfig(), config or ClassifyConfig()) as classifier:
        yield from classifier.classify(what, report)


def write_predictions(predictions: Iterable[Prediction], path: str | Path, top_k: int = 5) -> Summary:
    """Write predictions as they come into one .csv, .jsonl or .parquet file, whole or not at all."""
    from fastsd_lib.vit import predictions as rows

    return rows.write_predictions(predictions, expanded(path), top_k=top_k)


def explain(
    picture: Any,
    model: str | Path | VitModel = EMBEDDED,
    ways: Sequence[str] | None = None,
    target: str | int | None = None,
    out: str | Path | None = None,
    report: Report = silent,
) -> dict[str, Image]:
    """How a model sees a picture, by way ("rollout", "gradcam" ...; None = the quick ones that fit the model).

    `target`: the class to explain; None = the model's answer. With `out`, each is also written there as PNG.
    """
    opened = open_model(model)
    from fastsd_lib.vit import inside_pictures

    drawn = inside_pictures.explain(opened, picture, ways, target, on_progress=report)
    for way, made in drawn.items() if out else ():
        with atomic_path(expanded(str(out)) / f"{way}.png") as scratch:
            made.save(scratch)
    return drawn


def serve(
    model: str | Path | VitModel = EMBEDDED,
    config: ServeConfig | None = None,
    runner: RunnerConfig | None = None,
) -> Running:
    """Serve a model over HTTP at `.url`, in the background, until `.close()`; `.announcement` is for the terminal.

    UserError for a taken port, or a door that is open to more people than was said.
    """
    opened = open_model(model)
    from fastsd_lib.webui.vit_server import running

    return running.serve(opened, config or ServeConfig(), runner or RunnerConfig())
