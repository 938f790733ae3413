"""The command line: the same workflows as the notebooks, another face.

Exit status 0 on success, 2 with one or two lines on stderr for anything a user can cause.
"""

from __future__ import annotations

import argparse
import difflib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastsd_lib.cli_session import add_session
from fastsd_lib.cli_words import Parser, add_root, command, console_progress, opened, show
from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import plain_disk_errors
from fastsd_lib.environment import commands as environment_commands


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; UserError is for the caller (`python3 -m fastsd_lib`) to print."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(
        prog="fastsd",
        description="From five photos to a personal Stable Diffusion model.",
        allow_abbrev=False,
    )
    known = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)
    environment_commands.add_commands(known)
    for add in (
        add_session,
        _add_train,
        _add_generate,
        _add_identify,
        _add_convert,
        _add_models,
        _add_webui,
        _add_benchmark,
    ):
        add(known)
    if not arguments:
        parser.print_help()
        return 0
    options, rest = parser.parse_known_args(arguments)
    if rest and not getattr(options, "takes_rest", False):
        raise UserError(
            f"fastsd {arguments[0]}: unknown argument {rest[0]!r}.",
            fix=f"python3 -m fastsd_lib {arguments[0]} --help",
        )
    with plain_disk_errors(
        f"finish {arguments[0]}"
    ):  # a disk that fills up, or a Drive that goes, at any point
        return options.run(options, rest)


# ------------------------------------------------------------------ train and generate


def _add_train(known: Any) -> None:
    parser = command(known, "train", _train, "DreamBooth on a session's photos, exported as one file")
    parser.add_argument("name", metavar="SESSION")
    parser.add_argument(
        "choices", nargs="*", metavar="key=value", help="any line of recipe.yaml, such as unet_steps=800"
    )
    parser.set_defaults(takes_rest=True)  # argparse gives up on key=value words that follow an option
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="settings to start from")
    parser.add_argument(
        "--model",
        default=None,
        metavar="M",
        help="base model: embedded, a folder, a file or a Hugging Face id",
    )
    parser.add_argument(
        "--resume", action="store_true", help="repeat the session's last recipe, from where it stopped"
    )
    parser.add_argument(
        "--restart",
        action="store_true",
        help="start over although an unfinished run of these settings is there",
    )
    parser.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="work in this folder and carry checkpoints to the session (default for sessions on Drive)",
    )
    add_root(parser)


def _train(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.workflows import dreambooth

    session = opened(options)
    strange = next((word for word in rest if word.startswith("-") or "=" not in word), None)
    if strange is not None:
        raise UserError(
            f"fastsd train: unknown argument {strange!r}.", fix="python3 -m fastsd_lib train --help"
        )
    choices = [*options.choices, *rest]
    base_name, config = dreambooth.planned(session, options.recipe, options.resume, options.model, choices)
    base = dreambooth.base_model(base_name, options.root)
    progress = console_progress(options)
    checkpoint = dreambooth.train(
        session, base, config, report=progress, resume=not options.restart, local_folder=options.work
    )
    if not checkpoint.finished:
        stopped = (
            f"Stopped after step {checkpoint.step} of {checkpoint.total_steps}; saved in {checkpoint.path}."
        )
        again = shlex.join(
            [
                "python3",
                "-m",
                "fastsd_lib",
                "train",
                session.name,
                "--resume",
                *(["--root", str(options.root)] if options.root else []),
                *(["--work", str(options.work)] if options.work else []),
            ]
        )
        show(
            options,
            {"finished": False, "step": checkpoint.step, "checkpoint": str(checkpoint.path)},
            [stopped, f"Continue: {again}"],
        )
        return 130
    made = dreambooth.export(session, base, checkpoint, report=progress, local_folder=options.work)
    grid = dreambooth.compare(session, base, made, config, report=progress)
    lines = [
        f"Model: {made.path}",
        *([f"LoRA: {session.lora_file}"] if config.method == "lora" else []),
        f"Before and after: {grid}",
        f'Try it: python3 -m fastsd_lib generate "{config.instance_prompt}" --model "{made.path}"',
    ]
    show(
        options,
        {"finished": True, "model": str(made.path), "grid": str(grid), "checkpoint": str(checkpoint.path)},
        lines,
    )
    return 0


def _add_generate(known: Any) -> None:
    parser = command(known, "generate", _generate, "text to image")
    parser.add_argument("prompt")
    parser.add_argument(
        "--model",
        default="embedded",
        metavar="M",
        help="embedded, a folder, a single file or a Hugging Face id",
    )
    parser.add_argument("--out", type=Path, default=Path("outputs"), metavar="DIR")
    parser.add_argument("--negative-prompt", default="")
    parser.add_argument("--inference-steps", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, default=None)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--width-px", type=int, default=None)
    parser.add_argument("--height-px", type=int, default=None)
    parser.add_argument(
        "--sampler", default="ddim", metavar="NAME", help='such as "Euler a" or "DPM++ 2M Karras"'
    )
    parser.add_argument("--schedule", default="automatic", metavar="NAME", help="spacing of the noise levels")
    parser.add_argument("--eta", type=float, help="share of fresh noise per step")
    parser.add_argument("--clip-skip", type=int, default=1)
    parser.add_argument("--tiling", action="store_true", help="opposite edges fit together")
    parser.add_argument("--variation-seed", "--subseed", type=int, default=0, help="mixed into the seed")
    parser.add_argument("--variation-strength", "--subseed-strength", type=float, default=0.0)
    parser.add_argument("--init", type=Path, metavar="FILE", help="draw over this picture")
    parser.add_argument("--strength", type=float, default=0.75, help="how much of it anew: 0 none, 1 all")
    parser.add_argument("--resize-mode", default="stretch", help="stretch, crop, fill, latent")
    parser.add_argument("--mask", type=Path, metavar="FILE", help="white: what of --init is drawn anew")
    parser.add_argument("--mask-invert", action="store_true", help="black instead")
    parser.add_argument("--mask-blur-px", type=int, default=4)
    parser.add_argument(
        "--mask-fill", default="original", help="fill, original, latent_noise, latent_nothing"
    )
    parser.add_argument(
        "--only-masked", action="store_true", help="draw the mask's surroundings at full size"
    )
    parser.add_argument("--mask-padding-px", type=int, default=32)
    parser.add_argument("--hires-scale", type=float, metavar="X", help="a second pass, X times as large")
    parser.add_argument("--hires-strength", type=float, default=0.7)
    parser.add_argument("--hires-upscaler", default="latent")


def _generate(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.generation.files import generate_to_folder
    from fastsd_lib.generation.request import GenerationRequest, Hires, Inpaint
    from fastsd_lib.workflows import dreambooth

    init = inpaint = None
    if options.init or options.mask:
        from fastsd_lib.images.load import PhotoLimits, read_photo

        limits = PhotoLimits(min_side_px=1, max_aspect=64)
        init = read_photo(options.init, limits=limits).image if options.init else None
        if options.mask:
            inpaint = Inpaint(
                read_photo(options.mask, (0, 0, 0), limits).image,
                options.mask_invert,
                options.mask_blur_px,
                options.mask_fill,
                options.only_masked,
                options.mask_padding_px,
            )
    scale = options.hires_scale
    request = GenerationRequest(
        options.prompt,
        options.negative_prompt,
        options.inference_steps,
        options.guidance_scale,
        options.seed,
        options.count,
        options.width_px,
        options.height_px,
        options.sampler,
        options.schedule,
        options.eta,
        clip_skip=options.clip_skip,
        tiling=options.tiling,
        variation_seed=options.variation_seed,
        variation_strength=options.variation_strength,
        init=init,
        strength=options.strength,
        resize_mode=options.resize_mode,
        inpaint=inpaint,
        hires=Hires(scale, upscaler=options.hires_upscaler, strength=options.hires_strength)
        if scale
        else None,
    )
    request.check()
    written = generate_to_folder(
        dreambooth.base_model(options.model), request, options.out, console_progress(options)
    )
    show(options, [str(path) for path in written], [str(path) for path in written])
    return 0


# ------------------------------------------------------------------ models


def _add_identify(known: Any) -> None:
    parser = command(known, "identify", _identify, "model family and layout, from the header alone")
    parser.add_argument("file", type=Path)


def _identify(options: argparse.Namespace, rest: list[str]) -> int:
    import dataclasses

    from fastsd_lib.models.identify import identify

    found = identify(options.file)
    value = {
        key: str(item) if isinstance(item, Path) else item for key, item in dataclasses.asdict(found).items()
    }
    show(options, value, [f"{key}: {item}" for key, item in value.items()])
    return 0


def _add_convert(known: Any) -> None:
    parser = command(
        known, "convert", _convert, "Diffusers folder <-> single .safetensors file (Stable Diffusion 1.x)"
    )
    parser.add_argument("source", type=Path, metavar="SRC")
    parser.add_argument("target", type=Path, metavar="DST")
    parser.add_argument(
        "--dtype",
        choices=("fp16", "bf16", "fp32", "keep"),
        default="keep",
        help="of a single file (keep: as it is)",
    )


def _convert(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.workflows import dreambooth

    made = dreambooth.convert(
        options.source,
        options.target,
        None if options.dtype == "keep" else options.dtype,
        console_progress(options),
    )
    show(options, {"family": made.family, "layout": made.layout, "path": str(made.path)}, [str(made.path)])
    return 0


def _add_models(known: Any) -> None:
    parser = known.add_parser("models", help="base models by name", allow_abbrev=False)
    actions = parser.add_subparsers(metavar="ACTION", parser_class=Parser, required=True)
    command(actions, "list", _models_list, "the base models that have a name")
    for name, run, text in (
        ("info", _models_info, "what is known of one model"),
        ("download", _models_download, "fetch a model into the cache"),
    ):
        command(actions, name, run, text).add_argument("model")


def _models_list(options: argparse.Namespace, rest: list[str]) -> int:
    import dataclasses

    from fastsd_lib.models.registry import KNOWN_MODELS

    rows = [dataclasses.asdict(model) for model in KNOWN_MODELS]
    show(
        options,
        rows,
        [f"{row['name']}: {row['about']} ({row['resolution_px']} px, {row['licence']})" for row in rows],
    )
    return 0


def _models_info(options: argparse.Namespace, rest: list[str]) -> int:
    import dataclasses

    from fastsd_lib.models.registry import KNOWN_MODELS

    for model in KNOWN_MODELS:
        if options.model in (model.name, *model.aliases):
            value = dataclasses.asdict(model)
            show(options, value, [f"{key}: {item}" for key, item in value.items()])
            return 0
    options.file = Path(options.model)
    return _identify(options, rest)


def _models_download(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.workflows import dreambooth

    made = dreambooth.base_model(options.model)
    show(options, {"family": made.family, "layout": made.layout, "path": str(made.path)}, [str(made.path)])
    return 0


# ------------------------------------------------------------------ web UI, benchmarks


def _add_webui(known: Any) -> None:
    parser = command(known, "webui", _webui, "the web UI on this machine", as_json=False)
    parser.add_argument("--model", default="embedded", metavar="M")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--user", metavar="U")
    parser.add_argument(
        "--password",
        metavar="P",
        help="seen by all users of this machine while it starts; better: FASTSD_PASSWORD or --password-file",
    )
    parser.add_argument(
        "--password-file", type=Path, metavar="FILE", help="lines user:password, or with --user the password"
    )
    parser.add_argument("--no-auth", action="store_true", help="ask nobody for a password")
    parser.add_argument(
        "--anyone-may-use-this-machine",
        action="store_true",
        help="with --no-auth: although other machines reach it",
    )
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a name it may be called by"
    )


def _webui(options: argparse.Namespace, rest: list[str]) -> int:
    import os

    from fastsd_lib.workflows import webui

    if options.password:
        webui.hide_password(options.password)
    from_surroundings = os.environ.pop("FASTSD_PASSWORD", None)  # what we start need not know it
    webui.serve(
        options.model,
        host=options.host,
        port=options.port,
        user=options.user,
        password=options.password or (None if options.password_file else from_surroundings),
        password_file=options.password_file,
        no_auth=options.no_auth,
        open_to_all=options.anyone_may_use_this_machine,
        names=options.allow_host,
    )
    return 0


def _add_benchmark(known: Any) -> None:
    text = "the project's own figures beside its peers'"
    # --help is the benchmark's own: each has options of its kind
    parser = known.add_parser("benchmark", help=text, description=text, allow_abbrev=False, add_help=False)
    parser.set_defaults(run=_benchmark)
    parser.add_argument("benchmark", nargs="?", default="", metavar="NAME")
    parser.set_defaults(takes_rest=True)


def _benchmark(options: argparse.Namespace, rest: list[str]) -> int:
    import importlib

    from fastsd_lib.environment.bootstrap import REPOSITORY

    folder = REPOSITORY / "benchmarks"
    if not folder.is_dir():
        raise UserError(
            "The benchmarks are not part of an installed package.",
            fix="run this in a checkout of the repository.",
        )
    modules = [*folder.glob("[a-z]*.py"), *(path.parent for path in folder.glob("*/__init__.py"))]
    known = sorted(path.stem.replace("_", "-") for path in modules)
    if not options.benchmark:
        print("\n".join(known))
        return 0
    if options.benchmark not in known:
        near = difflib.get_close_matches(options.benchmark, known, 1)
        raise UserError(
            f"There is no benchmark {options.benchmark!r}.",
            fix=f"did you mean {near[0]}?" if near else f"one of: {', '.join(known)}",
        )
    sys.path.insert(0, str(REPOSITORY))
    return importlib.import_module(f"benchmarks.{options.benchmark.replace('-', '_')}").main(rest)
