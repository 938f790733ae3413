"""`fastsd vit embed|index|search`: pictures that are alike."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fastsd_lib.cli_fields import add_fields, config_of
from fastsd_lib.cli_vit_look import PICTURES_HELP, add_model, add_runner, what_of
from fastsd_lib.cli_words import command, console_progress, show
from fastsd_lib.vit.config import Features, RunnerConfig

KINDS = ("auto", "exact", "signs", "ivf", "hnsw")
METRICS = ("cosine", "dot", "l2")
CLUSTER_WAYS = ("kmeans", "agglomerative", "hdbscan")
ODD_WAYS = ("knn", "mahalanobis")


def add_verbs(verbs: Any) -> None:
    parser = command(verbs, "embed", _embed, "pictures to vectors on disk; only new ones are computed")
    parser.add_argument("pictures", nargs="+", metavar="PICTURES", help=PICTURES_HELP)
    parser.add_argument("--out", type=Path, default=Path("vectors"), metavar="DIR", help="default: vectors")
    add_model(parser)
    add_fields(parser, Features)
    add_runner(parser)

    parser = command(verbs, "index", _index, "an index over embedded pictures, its recall measured")
    parser.add_argument(
        "store", type=Path, metavar="VECTORS", help="a folder that `fastsd vit embed` has made"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: index, beside the vectors")
    parser.add_argument(
        "--kind", choices=KINDS, default="auto", metavar="|".join(KINDS), help="default: auto"
    )
    parser.add_argument(
        "--metric", choices=METRICS, default="cosine", metavar="|".join(METRICS), help="default: cosine"
    )
    parser.add_argument(
        "--recall", type=float, default=0.99, metavar="X", help="to be reached at 10; default: 0.99"
    )

    parser = command(verbs, "search", _search, "a picture in, the most alike of an index out")
    parser.add_argument("picture", metavar="PICTURE", help="a file or https address")
    parser.add_argument("--index", type=Path, default=Path("index"), metavar="DIR", help="default: index")
    parser.add_argument("--k", type=int, default=10, metavar="N", help="how many; default: 10")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="a page of thumbnails, as PNG")
    add_model(parser, usual="the one that embedded the pictures")
    add_runner(parser)
    _add_collection_verbs(verbs)


def _add_collection_verbs(verbs: Any) -> None:
    parser = _of_store(verbs, "duplicates", _duplicates, "pictures that are nearly the same")
    parser.add_argument(
        "--ways", default="bytes,phash,embedding", metavar="LIST", help="default: bytes,phash,embedding"
    )
    parser.add_argument(
        "--cosine", type=float, default=0.995, metavar="X", help="likeness to the model; default: 0.995"
    )
    parser.add_argument(
        "--phash-bits", type=int, default=6, metavar="N", help="of 64 that may differ; default: 6"
    )
    parser.add_argument(
        "--across",
        nargs=2,
        metavar=("A", "B"),
        help="only between files whose names begin so: data/train data/test",
    )
    parser = _of_store(verbs, "clusters", _clusters, "groups of pictures that are alike")
    parser.add_argument("--way", choices=CLUSTER_WAYS, default="kmeans", metavar="|".join(CLUSTER_WAYS))
    parser.add_argument("--count", type=int, default=0, metavar="N", help="0 (default) = as many as fit best")
    parser = _of_store(verbs, "outliers", _outliers, "pictures that are least like all others")
    parser.add_argument(
        "--way", choices=ODD_WAYS, default="knn", metavar="|".join(ODD_WAYS), help="default: knn"
    )
    parser.add_argument("--count", type=int, default=20, metavar="N", help="default: 20")


def _of_store(verbs: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    parser = command(verbs, name, run, text)
    parser.add_argument(
        "store", type=Path, metavar="VECTORS", help="a folder that `fastsd vit embed` has made"
    )
    return parser


def _embed(options: argparse.Namespace, rest: list[str]) -> int:
    features, runner = config_of(options, Features), config_of(options, RunnerConfig)
    from fastsd_lib.workflows import vit

    store = vit.embed(
        what_of(options.pictures), options.out, options.model, features, runner, console_progress(options)
    )
    value = {
        "path": str(store.path), "vectors": len(store), "dimension": store.dimension,
        "model": store.maker.model, "runner": store.maker.runner, "errors": store.errors,
    }  # fmt: skip
    lines = [f"not read: {key}: {reason}" for key, reason in store.errors.items()]
    lines.append(f"{len(store)} vectors of {store.dimension} numbers in {store.path} ({store.maker.runner})")
    show(options, value, [*lines, f"Next: python3 -m fastsd_lib vit index {store.path}"])
    return 0


def _index(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.workflows import vit

    out = options.out or options.store.with_name("index")
    made = vit.index(
        options.store,
        out,
        options.kind,
        console_progress(options),
        metric=options.metric,
        recall=options.recall,
    )
    value = {"path": str(out), "kind": made.kind, "metric": made.metric, "vectors": len(made), **made.facts}
    recall = (
        f"recall at {made.facts['recall_k']}: {made.facts['recall']:.3f}"
        if "recall" in made.facts
        else "exact search"
    )
    show(
        options,
        value,
        [
            f"{len(made)} vectors in {out} ({made.kind}, {recall})",
            f"Next: python3 -m fastsd_lib vit search PICTURE --index {out}",
        ],
    )
    return 0


def _search(options: argparse.Namespace, rest: list[str]) -> int:
    runner = config_of(options, RunnerConfig, batch_size=1)
    from fastsd_lib.workflows import vit

    found = vit.search(options.picture, options.index, options.k, options.model, runner, options.sheet)
    rows = [{"key": one.key, "score": one.score, "file": str(one.place or "")} for one in found]
    lines = [f"{one.score:.4f}  {one.place or one.key}" for one in found]
    show(options, rows, [*lines, *([f"Page: {options.sheet}"] if options.sheet else [])])
    return 0


def _duplicates(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.workflows import vit

    across = tuple(options.across) if options.across else None
    groups = vit.duplicates(
        options.store, [way.strip() for way in options.ways.split(",")], console_progress(options),
        cosine=options.cosine, phash_bits=options.phash_bits, across=across,
    )  # fmt: skip
    rows = [{"ways": list(group.ways), "pictures": list(group.keys)} for group in groups]
    lines = [f"{', '.join(row['ways'])}: {'  '.join(row['pictures'])}" for row in rows]
    show(options, rows, lines or ["No duplicates were found."])
    return 0


def _clusters(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.workflows import vit

    store, found = vit.clusters(options.store, options.way, options.count, console_progress(options))
    named = dict(zip(store.keys, found.labels.tolist(), strict=True))
    middles = [[store.keys[row] for row in rows[:3]] for rows in found.representatives]
    lines = [
        f"cluster {number}: {size} pictures, such as {'  '.join(keys)}"
        for number, (size, keys) in enumerate(zip(found.sizes, middles, strict=True))
    ]
    value = {
        "clusters": len(found),
        "sizes": found.sizes,
        "silhouette": found.silhouette,
        "cluster_of": named,
    }
    show(options, value, [*lines, f"silhouette: {found.silhouette:.3f} (1 = clear, 0 = none)"])
    return 0


def _outliers(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.workflows import vit

    found = vit.outliers(options.store, options.way, options.count)
    rows = [{"key": one.key, "score": one.score, "beyond": one.beyond} for one in found]
    lines = [f"{one.beyond:6.1f}  {one.key}" for one in found]
    show(options, rows, ["spreads above the middle (beyond 3.5 is rare):", *lines])
    return 0
