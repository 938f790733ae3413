"""The two prompts and the buttons beside them, for text to image and image to image alike."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from fastsd_lib.webui.tabs.desk import AT_ONCE, Desk
from fastsd_lib.webui.tabs.form import Form


@dataclass
class PromptBox:
    """What a tab wires its drawing to."""

    generate: gr.Button
    interrupt: gr.Button
    skip: gr.Button


def build(desk: Desk, form: Form) -> PromptBox:
    """Lay out the prompts of a tab across the page, its buttons at their side; adds both prompts to `form`."""
    kind = form.kind
    with gr.Row(elem_classes=["prompt-row"]):
        with gr.Column(scale=6, elem_classes=["prompts"]):
            form.fields["prompt"] = gr.Textbox(
                label="Prompt", placeholder="Prompt", lines=3, show_label=False, container=False,
                elem_id=f"{kind}_prompt",
            )  # fmt: skip
            form.fields["negative_prompt"] = gr.Textbox(
                label="Negative prompt", placeholder="Negative prompt", lines=2, show_label=False,
                container=False, elem_id=f"{kind}_neg_prompt",
            )  # fmt: skip
        with gr.Column(scale=1, min_width=220, elem_classes=["acts"]):
            with gr.Row(elem_classes=["ends"]):
                interrupt = gr.Button("Interrupt", elem_id=f"{kind}_interrupt", min_width=80)
                skip = gr.Button("Skip", elem_id=f"{kind}_skip", min_width=80)
            generate = gr.Button("Generate", variant="primary", elem_id=f"{kind}_generate")
            with gr.Row(elem_classes=["tools"]):
                paste = gr.Button("↙", elem_id=f"{kind}_paste", size="sm", min_width=40)
                clear = gr.Button("✕", elem_id=f"{kind}_clear_prompt", size="sm", min_width=40)
    text = gr.Textbox(visible="hidden", elem_id=f"{kind}_pasted", label="Pasted infotext")
    _connect(form, paste, clear, text)
    return PromptBox(generate, interrupt, skip)


def _connect(form: Form, paste: gr.Button, clear: gr.Button, text: gr.Textbox) -> None:
    prompts = [form.fields["prompt"], form.fields["negative_prompt"]]
    clear.click(None, None, prompts, js="() => ['', '']")

    # Wired when the form is whole: `pasteable` grows while the tab is laid out.
    def wire() -> None:
        paste.click(
            form.paste, [text], form.pasteable(), js=f"() => [fastsd.infotext('{form.kind}')]", **AT_ONCE
        )

    form.wirings.append(wire)
