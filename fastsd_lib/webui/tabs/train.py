"""Tab Train: from photos to a model, in the browser. The state lives in the server: a reload finds it again."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Literal

import gradio as gr

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui.tabs import train_photos, train_recipe
from fastsd_lib.webui.tabs.desk import QUIET, Desk, owner_of_page, told
from fastsd_lib.webui.tabs.tab import when_shown
from fastsd_lib.webui.tabs.train_shown import curve_html, sample_pictures, samples_key, state_html
from fastsd_lib.webui.trainings import Trainings, TrainingShown

LOOK_S = 1.0
ABOUT = (
    "Everybody who may use this page may train, one session at a time. Drawing goes on meanwhile; both share "
    "this machine. Resume goes on exactly where it stopped, as long as photos, captions and recipe stay as they are."
)


@dataclass
class RunBox:
    """How the training stands, and what can be done about it."""

    state: gr.HTML
    curve: gr.HTML
    samples: gr.Gallery
    seen: gr.State  # which samples are shown: they are sent again only when they change
    start: gr.Button
    stop: gr.Button
    resume: gr.Button
    export: gr.Button
    use: gr.Button
    use_lora: gr.Button
    clock: gr.Timer

    def parts(self) -> list[Any]:
        """What `of` writes to."""
        return [self.state, self.curve, self.samples, self.seen, self.start, self.stop, self.resume, self.export,
                self.use, self.use_lora, self.clock]  # fmt: skip

    def of(self, shown: TrainingShown | None, seen: str) -> list[Any]:
        if shown is None:
            hidden = [gr.Button(visible=False) for _ in range(5)]
            return ["", "", gr.Gallery([], visible=False), "", gr.Button(interactive=False), *hidden,
                    gr.Timer(active=False)]  # fmt: skip
        key = samples_key(shown)
        pictures = gr.skip() if key == seen else gr.Gallery(sample_pictures(shown), visible=bool(key))
        stop = "End now" if shown.state == "stopping" else "Stop and save"
        return [
            state_html(shown),
            curve_html(shown),
            pictures,
            key,
            gr.Button(
                interactive=not shown.busy and shown.state != "elsewhere",
                variant="primary" if shown.state in ("new", "running") else "secondary",
            ),
            gr.Button(stop, visible=shown.busy),
            gr.Button(visible=shown.resumable, variant="primary"),
            gr.Button(visible=shown.exportable and (shown.state != "finished" or shown.model is None)),
            gr.Button(visible=shown.model is not None and not shown.busy),
            gr.Button(visible=shown.lora is not None and not shown.busy),
            gr.Timer(active=shown.busy),
        ]


def build(desk: Desk) -> None:
    trainings: Trainings = desk.trainings
    with gr.Row(elem_classes=["studio"], elem_id="train"):
        with gr.Column():
            with gr.Row(elem_classes=["train-session"]):
                session = gr.Dropdown(
                    trainings.sessions(),
                    value=None,
                    label="Session",
                    elem_id="train_session",
                    scale=2,
                    min_width=140,
                )
                new = gr.Textbox(
                    label="New session",
                    placeholder="my-cat",
                    max_lines=1,
                    elem_id="train_new",
                    scale=2,
                    min_width=110,
                )
                create = gr.Button("Create", size="sm", elem_id="train_create", scale=1, min_width=80)
            photos = train_photos.build()
            recipe = train_recipe.build(trainings)
            pause = gr.Checkbox(
                False,
                label="Pause drawing meanwhile (leaves all memory to the training)",
                elem_id="train_pause",
            )
        with gr.Column():
            run = _build_run()
            gr.HTML(f'<p class="nothing">{ABOUT}</p>', padding=False)
    _connect(desk, trainings, session, new, create, photos, recipe, pause, run)


def _build_run() -> RunBox:
    with gr.Row(elem_classes=["train-acts"]):
        start = gr.Button(
            "Start training", variant="primary", interactive=False, elem_id="train_start", min_width=120
        )
        stop = gr.Button("Stop and save", variant="stop", visible=False, elem_id="train_stop", min_width=120)
        resume = gr.Button("Resume", visible=False, elem_id="train_resume", min_width=100)
        export = gr.Button("Export", visible=False, elem_id="train_export", min_width=120)
    state = gr.HTML(elem_id="train_state", padding=False)
    with gr.Row():
        use = gr.Button(
            "Use this model", visible=False, variant="primary", elem_id="train_use", min_width=120
        )
        use_lora = gr.Button("Use as LoRA", visible=False, elem_id="train_use_lora", min_width=120)
    curve = gr.HTML(elem_id="train_loss", padding=False)
    samples = gr.Gallery(
        label="Samples, the newest first", columns=4, height="auto", object_fit="contain", visible=False,
        interactive=False, elem_id="train_samples", buttons=["download", "fullscreen"],
    )  # fmt: skip
    return RunBox(
        state, curve, samples, gr.State(""), start, stop, resume, export, use, use_lora,
        gr.Timer(LOOK_S, active=False),
    )  # fmt: skip


def _connect(
    desk: Desk,
    trainings: Trainings,
    session: gr.Dropdown,
    new: gr.Textbox,
    create: gr.Button,
    photos: train_photos.PhotoBox,
    recipe: train_recipe.RecipeBox,
    pause: gr.Checkbox,
    run: RunBox,
) -> None:
    last: dict[str, str] = {}  # the session that each user looked at last
    loaded = gr.State("")  # the session whose photos and recipe this browser shows
    whole = [session, loaded, *photos.of_session(), *recipe.of_session(), *run.parts()]
    events: dict[str, Any] = {**QUIET, "concurrency_limit": None}

    def show(name: str, request: gr.Request) -> list[Any]:
        """Everything of a session; "" = of the one in training, or the one this user looked at last."""
        try:
            there = trainings.sessions()
            wanted = name or trainings.running() or last.get(owner_of_page(request), "")
            wanted = wanted if wanted in there else next(iter(there), "")
            menu = gr.Dropdown(there, value=wanted or None)
            if not wanted:
                blanks = [gr.skip() for _ in recipe.of_session()]
                return [menu, "", *photos.of(trainings, ""), *blanks, *run.of(None, "")]
            last[owner_of_page(request)] = wanted
            suggested = recipe.of(trainings, trainings.suggested(wanted))
            return [
                menu,
                wanted,
                *photos.of(trainings, wanted),
                *suggested,
                *run.of(trainings.look(wanted), ""),
            ]
        except UserError as error:
            raise told(error) from None

    def show_again(name: str, shown: str, seen: str, request: gr.Request) -> list[Any]:
        """The tab comes into view: what was typed stays."""
        if name and shown == name and name in trainings.sessions():
            rest = [gr.skip() for _ in (*photos.of_session(), *recipe.of_session())]
            return [gr.Dropdown(trainings.sessions(), value=name), shown, *rest, *look(name, seen)]
        return show(name or "", request)

    def look(name: str, seen: str) -> list[Any]:
        try:
            return run.of(trainings.look(name) if name else None, seen)
        except UserError as error:
            raise told(error) from None

    def make(name: str, request: gr.Request) -> list[Any]:
        try:
            return ["", *show(trainings.create(name or ""), request)]
        except UserError as error:
            raise told(error) from None

    def suit(name: str, base: str, method: str) -> list[Any]:
        """What suits another base model or method; the prompts stay."""
        try:
            found = trainings.suggested(name, base or "", method).values if name else {}
        except UserError as error:
            raise told(error) from None
        kept = (*train_recipe.PROMPTS, "method")
        return [gr.skip() if one in kept or one not in found else found[one] for one in recipe.fields]

    def begin(name: str, seen: str, paused: bool, base: str, *values: Any) -> list[Any]:
        try:
            trainings.start(name, base or "", recipe.values(values), paused)
        except UserError as error:
            raise told(error) from None
        return look(name, seen)

    def act(what: str) -> Any:
        def acted(name: str, seen: str, paused: bool) -> list[Any]:
            try:
                {"resume": lambda: trainings.resume(name, paused), "stop": lambda: trainings.stop(name),
                 "export": lambda: trainings.export(name)}[what]()  # fmt: skip
            except UserError as error:
                raise told(error) from None
            return look(name, seen)

        return acted

    changed = train_photos.connect(photos, trainings, session, recipe.fields["instance_prompt"])
    for event in changed:
        event.success(look, [session, run.seen], run.parts(), **events)
    when_shown(show_again, whole, [session, loaded, run.seen], concurrency_limit=None)
    session.input(show, session, whole, **events)
    gr.on([create.click, new.submit], make, new, [new, *whole], **events)
    gr.on(
        [recipe.base.input, recipe.fields["method"].input], suit, [session, recipe.base, recipe.fields["method"]],
        list(recipe.fields.values()), **events,
    )  # fmt: skip
    run.start.click(
        begin, [session, run.seen, pause, recipe.base, *recipe.fields.values()], run.parts(), **events
    )
    for button, what in ((run.resume, "resume"), (run.stop, "stop"), (run.export, "export")):
        button.click(act(what), [session, run.seen, pause], run.parts(), **events)
    run.clock.tick(look, [session, run.seen], run.parts(), trigger_mode="once", **events)
    _connect_use(desk, trainings, session, run)


def _connect_use(desk: Desk, trainings: Trainings, session: gr.Dropdown, run: RunBox) -> None:
    """To txt2img, with the trained model loaded and the instance prompt in its place."""
    chosen = gr.Textbox(visible="hidden", label="Trained model", elem_id="train_chosen")
    prompt = desk.forms["txt2img"].fields["prompt"]

    def use(kind: Literal["model", "lora"]) -> Any:
        async def used(name: str) -> list[Any]:
            try:
                found = await asyncio.to_thread(trainings.use, name, kind)
            except UserError as error:
                raise told(error) from None
            return [gr.Tabs(selected="txt2img"), found.prompt, found.model]

        return used

    for button, kind in ((run.use, "model"), (run.use_lora, "lora")):
        button.click(use(kind), session, [desk.tabs, prompt, chosen], **QUIET).success(
            None, chosen, js="(name) => { fastsd.checkpoint = name;"
            " document.getElementById('checkpoint_choose').click() }",
        )  # fmt: skip
