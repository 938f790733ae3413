"""How the page looks: one accent, system fonts (nothing is fetched from elsewhere), dark and light alike."""

from __future__ import annotations

import gradio as gr

SYSTEM_FONTS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "DejaVu Sans", "sans-serif")
SYSTEM_MONO = ("ui-monospace", "SFMono-Regular", "Consolas", "DejaVu Sans Mono", "monospace")

# Desk: what is asked on the left, what came of it on the right. Phone: ask, see, then the fine settings.
CSS = """
.gradio-container main { max-width: 1240px !important; width: 100% !important; margin: 0 auto !important;
  padding: 18px clamp(12px, 2vw, 24px) 32px !important; }
.gradio-container .main.fillable { padding: 0 !important; }
#head .html-container, #state .html-container { padding: 0 2px !important; }
.toast-text { white-space: pre-line; }
#head .title { display: flex; align-items: baseline; justify-content: space-between; gap: 16px; }
#head b { font-size: 1.5rem; font-weight: 700; letter-spacing: -0.02em; color: var(--body-text-color); }
#head span { font-size: 0.9rem; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
#studio { display: grid; gap: 16px; grid-template-columns: minmax(380px, 5fr) 8fr;
  grid-template-areas: "ask result" "settings result"; grid-template-rows: auto 1fr; align-items: start; }
#ask { grid-area: ask; } #settings { grid-area: settings; } #result { grid-area: result; }
#ask, #settings, #result { min-width: 0 !important; width: 100%; }
#generate, #stop { font-weight: 600; font-size: 1rem; }
#dice { align-self: stretch; font-size: 0.9rem; font-weight: 500; }
#state { min-height: 34px; }
#state .line, #state .line span { color: var(--body-text-color-subdued); }
#state .line { display: flex; justify-content: space-between; gap: 12px; font-size: 0.88rem;
  line-height: 20px; font-variant-numeric: tabular-nums; }
#state .bar { height: 6px; margin-top: 6px; border-radius: 3px; background: var(--border-color-primary);
  overflow: hidden; }
#state .bar i { display: block; height: 100%; border-radius: 3px; background: var(--primary-600);
  transition: width .15s linear; }
#record textarea { font-family: var(--font-mono); font-size: 0.82rem; line-height: 1.5; }
@media (max-width: 860px) {
  #studio { grid-template-columns: minmax(0, 1fr); grid-template-areas: "ask" "result" "settings";
    grid-template-rows: auto; }
  #pictures { height: 340px !important; }
}
"""


def theme() -> gr.themes.Base:
    return gr.themes.Base(
        primary_hue=gr.themes.colors.indigo,
        secondary_hue=gr.themes.colors.indigo,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_lg,
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
