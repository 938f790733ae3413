"""What is shown while the program behind the door does not answer: why, and that the page tries again by itself."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from fastsd_lib.webui.answers import error_body
from fastsd_lib.webui.asked import Answer

RETRY_S = 5

_STYLE = """
:root { color-scheme: light dark; --ink: #0f172a; --soft: #475569; --page: #f1f5f9; --card: #ffffff; --log: #f1f5f9; }
@media (prefers-color-scheme: dark) { :root { --ink: #f1f5f9; --soft: #cbd5e1; --page: #0b1120; --card: #1e293b;
  --log: #0f172a; } }
* { box-sizing: border-box; }
body { margin: 0; min-height: 100vh; min-height: 100dvh; display: grid; place-items: center; padding: 16px;
  background: var(--page); color: var(--ink);
  font: 16px/1.5 ui-sans-serif, system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { width: 100%; max-width: 760px; min-width: 0; background: var(--card); border-radius: 14px; padding: 28px;
  box-shadow: 0 1px 2px rgb(0 0 0 / .12), 0 12px 32px rgb(0 0 0 / .08); }
h1 { margin: 0 0 8px; font-size: 1.35rem; letter-spacing: -0.01em; }
p { margin: 0; color: var(--soft); }
div { margin-top: 20px; max-height: 55vh; overflow: auto; background: var(--log); border-radius: 8px;
  display: flex; flex-direction: column-reverse; } /* begins at its end, without a script */
pre { margin: 0; padding: 12px;
  font: 12.5px/1.45 ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class Trouble:
    """Why the upstream does not answer, and what its log says last (shown to those who signed in, only)."""

    headline: str  # "ComfyUI is still starting."
    log_lines: Sequence[str] = ()  # without secrets


def unavailable(trouble: Trouble, user: str | None, wants_page: bool, has_body: bool = False) -> Answer:
    """502 as a page that comes again by itself, or as JSON for programs; both say when to ask again.

    A request with a body is not sent again by the page: it was a form.
    """
    retry = [(b"retry-after", str(RETRY_S).encode())]
    if not wants_page:
        return Answer.json(502, error_body(502, trouble.headline), retry)
    lines = trouble.log_lines if user is not None else ()
    log = f"<div><pre>{html.escape(chr(10).join(lines))}</pre></div>" if lines else ""
    again = f"This page tries again every {RETRY_S} seconds." if not has_body else "Go back and try again."
    refresh = "" if has_body else f'<meta http-equiv="refresh" content="{RETRY_S}">'
    body = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Not there yet · fastsd</title>{refresh}
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="robots" content="noindex">
<style>{_STYLE}</style></head>
<body><main><h1>{html.escape(trouble.headline)}</h1>
<p>{again}</p>{log}
</main></body></html>
""".encode("utf-8", "replace")
    kept = [(b"content-type", b"text/html; charset=utf-8"), (b"cache-control", b"no-store"), *retry]
    return Answer(502, body, kept)
