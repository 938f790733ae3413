"""How the page looks: one accent, system fonts (nothing is fetched from elsewhere), dark and light alike."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

SYSTEM_FONTS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "DejaVu Sans", "sans-serif")
SYSTEM_MONO = ("ui-monospace", "SFMono-Regular", "Consolas", "DejaVu Sans Mono", "monospace")
PAGE = Path(__file__).parent / "page"  # its style sheets and scripts, each in a file of its own
#: Of the scripts those that run when the page is loaded; the others belong to one component.
SCRIPTS = ("prompts.js", "frame.js", "tasks.js", "canvas.js", "img2img.js", "preferences.js")


def styles() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(PAGE.glob("*.css")))


def head() -> str:
    """What stands in the page's head: its scripts."""
    texts = ((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    return "\n".join(f"<script>\n{text}</script>" for text in texts)


def theme() -> gr.themes.Base:
    return gr.themes.Base(
        primary_hue=gr.themes.colors.indigo,
        secondary_hue=gr.themes.colors.indigo,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        spacing_size=gr.themes.sizes.spacing_sm,
        text_size=gr.themes.sizes.text_sm,
        font=SYSTEM_FONTS,
        font_mono=SYSTEM_MONO,
    ).set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_500",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white",
        slider_color="*primary_600",
        slider_color_dark="*primary_500",
        block_label_text_weight="500",
        block_shadow="none",
    )
