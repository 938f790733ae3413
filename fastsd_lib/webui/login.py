"""The two small pages of our own: sign in, sign out. Nothing in them is fetched from anywhere."""

from __future__ import annotations

import base64
import hashlib
import html

_STYLE = """
:root { color-scheme: light dark; --ink: #0f172a; --soft: #475569; --page: #f1f5f9; --card: #ffffff;
  --line: #64748b; --accent: #4f46e5; --ring: #4f46e5;
  --wrong: #b91c1c; }
@media (prefers-color-scheme: dark) { :root { --ink: #f1f5f9; --soft: #cbd5e1; --page: #0b1120; --card: #1e293b;
  --line: #94a3b8; --accent: #4f46e5; --ring: #818cf8;
  --wrong: #fca5a5; } }
* { box-sizing: border-box; }
body { margin: 0; min-height: 100vh; min-height: 100dvh; display: grid; place-items: center; padding: 16px;
  background: var(--page); color: var(--ink);
  font: 16px/1.5 ui-sans-serif, system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { width: 100%; max-width: 380px; background: var(--card); border-radius: 14px; padding: 32px 28px;
  box-shadow: 0 1px 2px rgb(0 0 0 / .12), 0 12px 32px rgb(0 0 0 / .08); }
h1 { margin: 0; font-size: 1.5rem; letter-spacing: -0.02em; }
p { margin: 4px 0 20px; color: var(--soft); }
p.wrong { margin: 0 0 16px; color: var(--wrong); font-weight: 600; }
label { display: block; margin: 14px 0 4px; font-weight: 500; }
input { width: 100%; padding: 10px 12px; font: inherit; color: inherit; background: transparent;
  border: 1px solid var(--line); border-radius: 8px; }
button { width: 100%; margin-top: 22px; padding: 11px; font: inherit; font-weight: 600; color: #ffffff;
  background: var(--accent); border: 0; border-radius: 8px; cursor: pointer; }
button:hover { filter: brightness(1.1); }
input:focus-visible, button:focus-visible { outline: 3px solid var(--ring); outline-offset: 2px; }
@media (max-height: 520px) { /* a phone with its keyboard open */
  main { padding: 16px 24px; } p { margin: 0 0 8px; } p.wrong { margin: 0 0 8px; } label { margin-top: 8px; }
  button { margin-top: 14px; } }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

#: Stricter than the rest: these pages have no script and no picture.
POLICY = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; base-uri 'none'; frame-ancestors 'self'"


def login_page(then: str, user: str = "", trouble: str = "") -> bytes:
    """`then` is the address of ours to go to afterwards; `trouble` says why it did not work."""
    wrong = f'<p class="wrong" role="alert" id="trouble">{html.escape(trouble)}</p>' if trouble else ""
    told = ' aria-describedby="trouble" aria-invalid="true"' if trouble else ""
    on_name, on_password = ("", " autofocus") if user else (" autofocus", "")
    return _page(
        "Sign in",
        f"""<p>Sign in to draw on this machine.</p>{wrong}
<form method="post" action="/login">
<input type="hidden" name="next" value="{html.escape(then)}">
<label for="username">User</label>
<input id="username" name="username" value="{html.escape(user)}" autocomplete="username" autocapitalize="none" \
spellcheck="false" required{on_name}>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required{told}{on_password}>
<button>Sign in</button>
</form>""",
    )


def logout_page(user: str) -> bytes:
    return _page(
        "Sign out",
        f"""<p>You are signed in as {html.escape(user)}.</p>
<form method="post" action="/logout"><button>Sign out</button></form>""",
    )


def _page(title: str, body: str) -> bytes:
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title} · fastsd</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="robots" content="noindex">
<style>{_STYLE}</style></head>
<body><main><h1>fastsd</h1>
{body}
</main></body></html>
""".encode()


def local_address(address: str) -> str:
    """`address` if it leads to a page of ours, else the first page: a login sends nobody elsewhere."""
    plain = address.isprintable() and "\\" not in address and " " not in address
    return address if plain and address.startswith("/") and not address.startswith("//") else "/"
