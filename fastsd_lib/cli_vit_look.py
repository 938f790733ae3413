"""`fastsd vit classify|explain|serve|sample-data`: what a model says of pictures, and why."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

from fastsd_lib.cli_fields import add_fields, config_of
from fastsd_lib.cli_webui import on_termination
from fastsd_lib.cli_words import command, console_progress, show
from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.config import ClassifyConfig, RunnerConfig
from fastsd_lib.webui.vit_server.config import ServeConfig
from fastsd_lib.workflows.vit_pictures import SAMPLES

PICTURES_HELP = "files, folders, globs, zips or https addresses"
MODEL_HELP = (
    "embedded, vit-b16-224, vit-l16-384, a Hugging Face id, a folder of transformers, or that of a training"
)
WAYS = (
    "patches", "positions", "attention", "heads", "rollout", "relevance", "gradcam", "occlusion", "faithfulness",
)  # fmt: skip


def add_verbs(verbs: Any) -> None:
    parser = command(verbs, "classify", _classify, "what is on pictures: labels and their probabilities")
    parser.add_argument("pictures", nargs="+", metavar="PICTURES", help=PICTURES_HELP)
    add_model(parser)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=".csv, .jsonl or .parquet, a row for each picture"
    )
    add_fields(parser, ClassifyConfig)
    add_runner(parser)

    parser = command(verbs, "explain", _explain, "how the model sees a picture: attention, Grad-CAM ...")
    parser.add_argument("picture", metavar="PICTURE", help="a file or https address")
    add_model(parser)
    parser.add_argument(
        "--ways", metavar="LIST", help=f"of {', '.join(WAYS)} (default: the quick ones that fit the model)"
    )
    parser.add_argument(
        "--target", metavar="CLASS", help="the class to explain (default: the model's answer)"
    )
    parser.add_argument("--out", type=Path, default=Path("inside"), metavar="DIR", help="default: inside")

    parser = command(verbs, "serve", _serve, "answer other programs over HTTP", as_json=False)
    add_model(parser)
    add_fields(
        parser.add_argument_group("the server"),
        ServeConfig,
        leave=(
            "features",
            "tunnel",
            "names",
            "password_file",
            "no_auth",
            "anyone_may_use_this_machine",
            "fetch_urls",
        ),
    )
    door = parser.add_argument_group("who gets in")
    door.add_argument(
        "--password-file", type=Path, metavar="FILE", help="lines user:password, or the password alone"
    )
    door.add_argument("--no-auth", action="store_true", help="ask nobody for a password")
    door.add_argument(
        "--anyone-may-use-this-machine", action="store_true", help="with --no-auth: although others reach it"
    )
    door.add_argument(
        "--allow-host", dest="names", action="append", default=[], metavar="NAME", help="it may be called so"
    )
    door.add_argument("--fetch-urls", action="store_true", help="take pictures by https address, too")
    door.add_argument(
        "--tunnel",
        dest="routes",
        action="append",
        default=[],
        metavar="NAME",
        help="a public address, with a password: ngrok, gradio, localtunnel, cloudflared, auto (docs/tunnels.md)",
    )
    door.add_argument("--ssh-host", default="", metavar="USER@HOST:PORT", help="of the tunnel ssh")
    door.add_argument(
        "--i-have-paid-compute-units", action="store_true", help="on Colab: free runtimes disallow it"
    )
    add_runner(parser)

    parser = command(
        verbs, "sample-data", _sample_data, "real pictures to try things on, a folder for each class"
    )
    parser.add_argument("kind", choices=SAMPLES, metavar="|".join(SAMPLES))
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", nargs="?", help="default: one of that name, here"
    )


def add_model(parser: argparse.ArgumentParser, usual: str = "") -> None:
    """`usual`: what no --model means where that is not the embedded one."""
    parser.add_argument(
        "--model",
        default=None if usual else "embedded",
        metavar="M",
        help=f"{MODEL_HELP} (default: {usual or 'embedded'})",
    )


def add_runner(parser: argparse.ArgumentParser) -> None:
    add_fields(parser.add_argument_group("what computes"), RunnerConfig)


def what_of(pictures: list[str]) -> Any:
    """One thing as it is, so that a folder is a folder; several as a list."""
    return pictures[0] if len(pictures) == 1 else pictures


def _classify(options: argparse.Namespace, rest: list[str]) -> int:
    config, runner = config_of(options, ClassifyConfig), config_of(options, RunnerConfig)
    from fastsd_lib.workflows import vit

    predictions = vit.classify(
        what_of(options.pictures), options.model, config, runner, console_progress(options)
    )
    if options.out:
        written = vit.write_predictions(predictions, options.out, config.top_k)
        line = f"{written.pictures - written.bad} pictures classified in {written.path}"
        show(
            options,
            dataclasses.asdict(written),
            [line + (f"; {written.bad} could not be read" if written.bad else "")],
        )
        return 0
    found = list(predictions)
    rows = [
        {"picture": one.key, "labels": list(one.labels), "scores": list(one.scores), "error": one.error}
        for one in found
    ]
    lines = [
        f"{one.key}: not read: {one.error}" if one.error
        else f"{one.key}: " + ", ".join(f"{label} {score:.1%}" for label, score in zip(one.labels, one.scores, strict=True))
        for one in found
    ]  # fmt: skip
    show(options, rows, lines)
    if all(one.error for one in found):
        raise UserError("No picture could be read.", fix="give photos as JPEG, PNG, WebP or HEIC.")
    return 0


def _explain(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.workflows import vit

    ways = [way.strip() for way in options.ways.split(",") if way.strip()] if options.ways else None
    drawn = vit.explain(
        options.picture, options.model, ways, options.target, options.out, console_progress(options)
    )
    files = {way: str(options.out / f"{way}.png") for way in drawn}
    show(options, files, [f"{way}: {file}" for way, file in files.items()])
    return 0


def _serve(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.workflows import vit, webui

    if options.password:
        webui.hide_password(options.password)
    elif not options.password_file:
        options.password = os.environ.pop("FASTSD_PASSWORD", "")
    options.names, options.port = tuple(options.names), options.port or None
    config, runner = config_of(options, ServeConfig), config_of(options, RunnerConfig)
    if options.routes:
        return _serve_publicly(options, config, runner)
    running = vit.serve(options.model, config, runner)
    for line in running.announcement:
        print(line)
    print(
        f"{options.model} answers at {running.url} (documentation: {running.url.rstrip('/')}/docs; Ctrl-C ends it)",
        flush=True,
    )
    running.wait_for_the_end()
    return 0


def _serve_publicly(options: argparse.Namespace, config: ServeConfig, runner: RunnerConfig) -> int:
    from fastsd_lib.workflows import vit_serve

    asked = vit_serve.VitServeConfig(
        options.model, ",".join(options.routes), options.ssh_host, config.user, config.password, config.port or 0,
        config.top_k, options.i_have_paid_compute_units,
    )  # fmt: skip
    launched = vit_serve.launch(
        asked,
        serve_config=config,
        runner=runner,
        on_url=lambda tunnel: print(f"For others: {tunnel.url}", flush=True),
    )
    ending = on_termination()
    try:
        print(f"On this machine: {launched.url}   (Ctrl-C ends it)", flush=True)
        launched.wait(ending)
    finally:
        launched.stop()
    return 0


def _sample_data(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.workflows import vit

    folder = vit.sample_data(options.kind, options.folder or Path(options.kind))
    count = sum(1 for path in folder.rglob("*") if path.is_file())
    show(
        options,
        {"path": str(folder), "pictures": count},
        [f"{count} pictures in {folder}", f"Next: python3 -m fastsd_lib vit train {folder}"],
    )
    return 0
