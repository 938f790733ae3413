"""`fastsd vit train|distil|evaluate|probe`: a model of one's own pictures, and how good it is."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from pathlib import Path
from typing import Any

from fastsd_lib.cli_fields import add_fields, config_of
from fastsd_lib.cli_vit_look import add_model, add_runner
from fastsd_lib.cli_words import command, console_progress, show
from fastsd_lib.core.config import apply_overrides, load_config
from fastsd_lib.core.field_words import field_comments
from fastsd_lib.vit.config import Features, RunnerConfig
from fastsd_lib.vit.train_config import PRESETS, VitTrainConfig, preset

FOLDER_HELP = "one folder of pictures for each class, perhaps below train/, val/ and test/"
SPLITS = ("held_out", "train", "validation", "test", "all")
SPLIT_FIELDS = ("validation", "test", "seed", "group_by")


def add_verbs(verbs: Any) -> None:
    _add_training(command(verbs, "train", _train, "learn the classes of a folder of pictures"), "default")
    parser = command(verbs, "distil", _train, "train a smaller model that learns from a larger one")
    parser.add_argument("--teacher", required=True, metavar="M", help="a model that knows these classes")
    _add_training(parser, "scratch")

    parser = command(
        verbs, "evaluate", _evaluate, "accuracy, confusion, worst mistakes, calibration: a report"
    )
    parser.add_argument("data", metavar="FOLDER", help=FOLDER_HELP)
    add_model(parser)
    parser.add_argument(
        "--split", choices=SPLITS, default="held_out", metavar="|".join(SPLITS),
        help="held_out (default): the test pictures where there are some, else those that `train` holds back",
    )  # fmt: skip
    add_fields(parser, VitTrainConfig, only=SPLIT_FIELDS)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="report.html and its pictures (default: none is written)"
    )
    add_runner(parser)

    parser = command(verbs, "probe", _probe, "how far a model's features go without training")
    parser.add_argument("data", metavar="FOLDER", help=FOLDER_HELP)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="keeps the vectors (default: FOLDER-vectors, here)"
    )
    add_model(parser)
    add_fields(parser, Features)
    add_runner(parser)


def _add_training(parser: argparse.ArgumentParser, preset: str) -> None:
    parser.add_argument("data", metavar="FOLDER", help=f"{FOLDER_HELP}; also a data set of Hugging Face")
    parser.add_argument(
        "choices", nargs="*", metavar="key=value", help="such as epochs=20; all of them are below"
    )
    parser.set_defaults(takes_rest=True, usual_preset=preset)
    parser.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        default=preset,
        metavar="|".join(PRESETS),
        help=f"default: {preset}",
    )
    parser.add_argument(
        "--recipe", type=Path, metavar="FILE", help="settings to start from, such as OUT/recipe.yaml"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="gets model/, report/, checkpoints/ (default: FOLDER-vit, here)",
    )
    parser.add_argument(
        "--restart", action="store_true", help="start over although an unfinished run is there"
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "settings (key=value):\n" + "\n".join(_settings())


def _settings() -> list[str]:
    """Every setting with its default and what it means."""
    comments = field_comments(VitTrainConfig)
    lines = []
    for field in dataclasses.fields(VitTrainConfig):
        if field.name not in ("data", "teacher"):
            shown = f"{field.default:g}" if isinstance(field.default, float) else field.default
            lines.append(f"  {f'{field.name}={shown}':<32} {comments.get(field.name, '')}".rstrip())
    return lines


def _train(options: argparse.Namespace, rest: list[str]) -> int:
    words = [*options.choices, *rest]
    fixed = {"data": options.data, **({"teacher": options.teacher} if options.verb == "distil" else {})}
    if options.recipe:
        config = dataclasses.replace(load_config(VitTrainConfig, options.recipe, words), **fixed)
    else:
        config = apply_overrides(preset(options.preset, **fixed), words)
    from fastsd_lib.workflows import vit

    out = options.out or Path(f"{Path(options.data.rstrip('/')).name}-vit")
    trained = vit.train(config, out, console_progress(options), restart=options.restart)
    figures = {"model": str(trained.model.path), "out": str(trained.out), "steps": trained.steps,
               "seconds": trained.seconds, "metrics": trained.metrics, "notes": list(trained.notes)}  # fmt: skip
    right = [f"Right on held-out pictures: {trained.metrics['accuracy']:.2%}"] if trained.metrics else []
    page = trained.out / "report" / "report.html"
    lines = [
        f"Model: {trained.model.path}",
        *right,
        *([f"Report: {page}"] if page.is_file() else []),
        f"Try it: python3 -m fastsd_lib vit classify PICTURES --model {shlex.quote(str(trained.out))}",
    ]
    show(options, figures, lines)
    return 0


def _probe(options: argparse.Namespace, rest: list[str]) -> int:
    features, runner = config_of(options, Features), config_of(options, RunnerConfig)
    from fastsd_lib.workflows import vit

    out = options.out or Path(f"{Path(options.data.rstrip('/')).name}-vectors")
    rows = vit.probe(options.data, out, options.model, features, runner, console_progress(options))
    value = [{**dataclasses.asdict(row), "accuracy": row.accuracy, "interval": row.interval} for row in rows]
    show(
        options,
        value,
        [f"{row.way}: {row.accuracy:.2%} ({row.right} of {row.images}, {row.judged})" for row in rows],
    )
    return 0


def split_of(options: argparse.Namespace) -> dict[str, Any]:
    """How a folder is split, checked as the settings of a training are."""
    how = config_of(
        argparse.Namespace(**{name: getattr(options, name) for name in SPLIT_FIELDS}), VitTrainConfig
    )
    return {
        "validation": how.validation,
        "test": how.test,
        "seed": how.seed,
        "group_by": how.group_by or None,
    }


def _evaluate(options: argparse.Namespace, rest: list[str]) -> int:
    runner = config_of(options, RunnerConfig)
    split = split_of(options)
    from fastsd_lib.workflows import vit

    made = vit.evaluate(
        options.data, options.model, options.split, options.out, runner, console_progress(options),
        **split,
    )  # fmt: skip
    lines = [f"{name}: {value}" for name, value in vit.headline(made)]
    show(
        options,
        made.summary(),
        [*lines, *([f"Report: {options.out / 'report.html'}"] if options.out else [])],
    )
    return 0
