"""Colab's own port proxy: no program and no account; the address opens in the browser that runs the notebook."""

from __future__ import annotations

import json
from typing import Any

from fastsd_lib.webui.tunnels.opening import Claim, Opening
from fastsd_lib.webui.tunnels.probe import within

ASKING_S = 20.0
PAGE_TROUBLES = (TypeError, ValueError, RuntimeError, OSError)  # TimeoutError too
NOTES = (
    "Only you can open this address, in the browser that runs the notebook, while the notebook is open.",
)
UNREACHED = "allow cookies of googleusercontent.com in this browser, or take the next route."


def open_colab(opening: Opening) -> Claim:
    """Ask the notebook's page for the address of our port, and have it send the nonce there.

    This machine cannot: the proxy knows people by their browser.
    """
    try:
        from google.colab import output
    except ImportError:
        raise opening.failed("this is no Colab notebook.", "take another route.") from None
    script = f"google.colab.kernel.proxyPort({opening.port}, {{cache: true}})"
    fix = "run the cell in Colab's own page, with the page open."
    try:
        asked = opening.within(ASKING_S, lambda: _in_page(output, script), "asking the notebook's page", fix)
    except PAGE_TROUBLES as error:
        raise opening.failed(f"the notebook's page does not answer: {error}.", fix) from None
    url = str(asked or "").rstrip("/")
    if not url.startswith("http"):
        raise opening.failed(
            f"the notebook gave no address but {url!r}.", "run the cell in Colab's own page."
        )

    def ask(nonce: str) -> str:
        """The answer is another site's to the notebook's page, which cannot read it: the guard knows that it was asked."""
        asking = (
            f"fetch({json.dumps(f'{url}/.fsd/{nonce}')}, {{mode: 'no-cors', credentials: 'include'}})"
            ".then(() => 'answered', error => String(error))"
        )
        try:
            told = str(within(max(2.0, min(ASKING_S, opening.left_s)), lambda: _in_page(output, asking)))
        except PAGE_TROUBLES as error:
            return f"the notebook's page does not answer: {error}"
        return "" if told == "answered" else f"the browser says: {told[:120]}"

    return Claim(url, NOTES, unreached=UNREACHED, ask=ask)


def _in_page(output: Any, script: str) -> Any:
    return output.eval_js(script, timeout_sec=ASKING_S)
