"""`fastsd generate`: every way to draw, from the command line."""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsd_lib.cli_words import add_root, command, console_progress, show
from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.request import MAX_SEED, GenerationRequest, Hires, Inpaint

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastsd_lib.generation.control_request import ControlUnit


def add_generate(known: Any) -> None:
    parser = command(known, "generate", _generate, "text to image, image to image, inpainting, ControlNet")
    parser.add_argument("prompt", nargs="?", help='what to see; with --session also "{subject}"')
    parser.add_argument("--from-file", type=Path, metavar="FILE", help="prompts from a file, one per line")
    _add_model(parser)
    _add_settings(parser)
    _add_first_picture(parser)
    _add_control(parser)
    files = parser.add_argument_group("files")
    files.add_argument("--out", "--outdir", type=Path, default=Path("outputs"), metavar="DIR")
    files.add_argument("--format", default="png", choices=["png", "jpg", "webp"])
    files.add_argument("--grid", action="store_true", help="all pictures on one page, too")
    files.add_argument("--grid-columns", "--n_rows", type=int, metavar="N")


def _add_model(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("model")
    model.add_argument("--model", metavar="M", help="embedded (usual), a folder, a file or a Hugging Face id")
    model.add_argument("--session", metavar="NAME", help="the model that was trained in this session")
    add_root(parser)
    model.add_argument("--vae", type=Path, metavar="FILE", help="a VAE instead of the model's own")
    model.add_argument(
        "--library", type=Path, metavar="DIR", help="a folder with models/Lora, embeddings, models/ControlNet"
    )
    model.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    model.add_argument("--dtype", "--precision", default="auto", help="auto, fp16, bf16, fp32")
    model.add_argument("--threads", type=int, metavar="N", help="CPU threads")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("settings").add_argument
    add("--negative-prompt", default="")
    add("--style", action="append", default=[], metavar="NAME", help="of the library's styles.csv")
    add("--inference-steps", "--steps", "--ddim_steps", type=int, default=25)
    add("--guidance-scale", "--cfg-scale", "--scale", type=float, default=None)
    add("--seed", type=int, default=42, help="-1: any; the file's name tells which it was")
    add("--count", "--n_samples", type=int, default=1, help="pictures of each prompt")
    add("--width-px", "--width", "--W", type=int, default=None)
    add("--height-px", "--height", "--H", type=int, default=None)
    add("--sampler", default="ddim", metavar="NAME", help='such as "Euler a" or "DPM++ 2M Karras"')
    add("--schedule", default="automatic", metavar="NAME", help="spacing of the noise levels")
    add("--eta", "--ddim_eta", type=float, help="share of fresh noise per step")
    add("--clip-skip", type=int, default=1)
    add("--tiling", action="store_true", help="opposite edges fit together")
    add("--variation-seed", "--subseed", type=int, default=0, help="mixed into the seed")
    add("--variation-strength", "--subseed-strength", type=float, default=0.0)
    add("--hires-scale", type=float, metavar="X", help="a second pass, X times as large")
    add("--hires-strength", type=float, default=0.7)
    add("--hires-upscaler", default="latent")
    add("--hires-steps", type=int, default=0, help="0: as many as the first pass")


def _add_first_picture(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("over a picture").add_argument
    add("--init", type=Path, metavar="FILE", help="draw over this picture")
    add("--strength", type=float, default=0.75, help="how much of it anew: 0 none, 1 all")
    add("--resize-mode", default="stretch", help="stretch, crop, fill, latent")
    add("--mask", type=Path, metavar="FILE", help="white: what of --init is drawn anew")
    add("--mask-invert", action="store_true", help="black instead")
    add("--mask-blur-px", type=int, default=4)
    add("--mask-fill", default="original", help="fill, original, latent_noise, latent_nothing")
    add("--only-masked", action="store_true", help="draw the mask's surroundings at full size")
    add("--mask-padding-px", type=int, default=32)
    add(
        "--outpaint",
        type=int,
        nargs=4,
        metavar=("LEFT", "RIGHT", "TOP", "BOTTOM"),
        help="pixels to draw beyond each edge of --init",
    )


def _add_control(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group(
        "ControlNet; each option once per --control, or once for all"
    ).add_argument
    add("--control", type=Path, action="append", default=[], metavar="FILE", help="a picture that steers")
    add("--control-model", action="append", default=[], metavar="NAME", help="file name in the library")
    add("--control-preprocessor", action="append", default=[], metavar="NAME", help="such as canny")
    add("--control-weight", type=float, action="append", default=[], metavar="X", help="0 to 2")
    add("--control-start", type=float, action="append", default=[], metavar="X", help="share of the steps")
    add("--control-end", type=float, action="append", default=[], metavar="X")
    add("--control-mode", action="append", default=[], metavar="NAME", help="balanced, prompt, control")


def _generate(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.generation.files import draw_to_folder, save_grid
    from fastsd_lib.generation.prompts import prepare_prompts
    from fastsd_lib.workflows import drawing

    prompts = _prompts(options)
    request = _request(options)
    request.check()
    model, instance_prompt = _model(options)
    if instance_prompt:
        prompts = [drawing.with_subject(prompt, instance_prompt) for prompt in prompts]
    engine = drawing.open_engine(
        model, options.vae, options.library, options.device, options.dtype, options.threads
    )
    requests, folders = [], drawing.library_folders(options.library)
    for prompt in prompts:
        prepared = prepare_prompts(replace(request, prompt=prompt), folders, options.style)
        requests += prepared.requests
        for warning in prepared.warnings:
            print(f"Note: {warning}", file=sys.stderr)
    written = []
    for path in draw_to_folder(
        engine, requests, options.out, f".{options.format}", console_progress(options)
    ):
        written.append(path)
        if not options.json:
            print(path, flush=True)  # at once: what is said is on the disk
    if options.grid or options.grid_columns:
        written.append(save_grid(written, options.grid_columns))
        if not options.json:
            print(written[-1])
    if options.json:
        show(options, [str(path) for path in written], [])
    return 0


def _prompts(options: argparse.Namespace) -> list[str]:
    from fastsd_lib.workflows.drawing import prompts_in

    if (options.prompt is None) == (options.from_file is None):
        found = "Both a prompt and --from-file" if options.from_file else "Neither a prompt nor --from-file"
        raise UserError(
            f"{found}: what is to be drawn?", fix='python3 -m fastsd_lib generate "a photo of a cat"'
        )
    return prompts_in(options.from_file) if options.from_file else [options.prompt]


def _model(options: argparse.Namespace) -> tuple[str | Path, str]:
    """The model, and the instance prompt of its session."""
    if not options.session:
        return options.model or "embedded", ""
    if options.model:
        raise UserError("--model and --session contradict each other.", fix="give one of the two.")
    from fastsd_lib.workflows import drawing

    return drawing.model_of_session(options.session, options.root)


def _request(options: argparse.Namespace) -> GenerationRequest:
    seed = random.randint(0, MAX_SEED - 1000) if options.seed == -1 else options.seed
    init, inpaint = _first_picture(options)
    scale = options.hires_scale
    hires = Hires(
        scale or 1,
        upscaler=options.hires_upscaler,
        strength=options.hires_strength,
        inference_steps=options.hires_steps,
    )
    return GenerationRequest(
        options.prompt or "",
        options.negative_prompt,
        options.inference_steps,
        options.guidance_scale,
        seed,
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
        hires=hires if scale else None,
        control=_control(options),
    )


def _first_picture(options: argparse.Namespace) -> tuple[Image | None, Inpaint | None]:
    """What is drawn over, and which part of it."""
    init = _picture(options.init) if options.init else None
    if options.outpaint:
        from fastsd_lib.generation.canvas import outpaint

        if init is None or options.mask:
            raise UserError(
                "--outpaint goes with --init alone.", fix="--init FILE --outpaint 64 64 0 0, without --mask"
            )
        left, right, top, bottom = options.outpaint
        return outpaint(init, left_px=left, right_px=right, top_px=top, bottom_px=bottom)
    if not options.mask:
        return init, None
    return init, Inpaint(
        _picture(options.mask, (0, 0, 0)),
        options.mask_invert,
        options.mask_blur_px,
        options.mask_fill,
        options.only_masked,
        options.mask_padding_px,
    )


def _control(options: argparse.Namespace) -> tuple[ControlUnit, ...]:
    from fastsd_lib.generation.control_request import ControlUnit

    names = ("model", "preprocessor", "weight", "start", "end", "mode")
    given = {name: getattr(options, f"control_{name}") for name in names}
    units = len(options.control)
    for name, values in given.items():
        if len(values) not in (0, 1, units) or (values and not units):
            raise UserError(
                f"--control-{name} is given {len(values)} times for {units} --control.",
                fix="give it once for all, or once for each --control.",
            )
    return tuple(
        ControlUnit(
            _picture(file), **{name: values[at % len(values)] for name, values in given.items() if values}
        )
        for at, file in enumerate(options.control)
    )


def _picture(path: Path, background: tuple[int, int, int] = (255, 255, 255)) -> Image:
    from fastsd_lib.images.load import PhotoLimits, read_photo

    return read_photo(path, background, PhotoLimits(min_side_px=1, max_aspect=64)).image
