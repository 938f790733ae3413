"""The two prompts and the buttons beside them, for text to image and image to image alike."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from fastsd_lib.webui.tabs import overrides, quick_settings, styles_box
from fastsd_lib.webui.tabs.desk import AT_ONCE, Desk, icon_button
from fastsd_lib.webui.tabs.form import Form


@dataclass
class PromptBox:
    """What a tab wires its drawing to."""

    generate: gr.Button
    interrupt: gr.Button
    skip: gr.Button


def build(desk: Desk, form: Form) -> PromptBox:
    """Lay out the prompts of a tab across the page, its buttons at their side; adds both prompts, the styles and
    what stands in the bar above the tabs to `form`. Keys, drops and the token counts are the business of page/prompts.js.
    """
    kind = form.kind
    with gr.Row(elem_classes=["prompt-row"], elem_id=f"{kind}_toprow"):
        with gr.Column(scale=6, min_width=300, elem_classes=["prompts"]):
            form.fields["prompt"] = gr.Textbox(
                label="Prompt", placeholder="Prompt (Ctrl+Enter draws; drop a picture to take its settings)",
                lines=3, show_label=False, container=False, elem_id=f"{kind}_prompt", elem_classes=["prompt"],
            )  # fmt: skip
            form.fields["negative_prompt"] = gr.Textbox(
                label="Negative prompt", placeholder="Negative prompt: what should not be there", lines=2,
                show_label=False, container=False, elem_id=f"{kind}_neg_prompt", elem_classes=["prompt"],
            )  # fmt: skip
        with gr.Column(scale=2, min_width=240, elem_classes=["acts"]):
            with gr.Row(elem_classes=["go"]):
                generate = gr.Button("Generate", variant="primary", elem_id=f"{kind}_generate")
                interrupt = gr.Button("Interrupt", variant="stop", elem_id=f"{kind}_interrupt", min_width=80)
                skip = gr.Button("Skip", elem_id=f"{kind}_skip", min_width=80)
            with gr.Row(elem_classes=["tools"]):
                paste = icon_button(
                    "Read the settings in the prompt, or those of the last picture", "arrow", f"{kind}_paste"
                )
                clear = icon_button("Empty the prompts", "bin", f"{kind}_clear_prompt")
                styles_box.build(desk, form)
    overrides.build(desk, form)
    quick_settings.add_to(desk, form)
    text = gr.Textbox(visible="hidden", elem_id=f"{kind}_pasted", label="Pasted infotext")
    prompts = [form.fields["prompt"], form.fields["negative_prompt"]]
    clear.click(None, None, prompts, js="() => ['', '']")
    form.wirings.append(
        lambda: paste.click(
            form.paste, [text], form.pasteable(), js=f"() => [fastsd.infotext('{kind}')]", **AT_ONCE
        )
    )
    return PromptBox(generate, interrupt, skip)
