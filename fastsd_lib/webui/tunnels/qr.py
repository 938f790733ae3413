"""An address as a QR code: for a phone held before the terminal, the notebook or the page."""

from __future__ import annotations

import io


def qr_text(url: str) -> str:
    """Two rows of squares in one line of half blocks: as it must be on a dark background; phones read the other too."""
    import segno

    out = io.StringIO()
    segno.make(url, error="m", micro=False).terminal(out, border=2, compact=True)
    return out.getvalue()


def qr_svg(url: str, scale: float = 5.0) -> str:
    """An <svg> element, black on white, to stand in a page; `scale` is the size of a square in pixels."""
    import segno

    return segno.make(url, error="m", micro=False).svg_inline(
        scale=scale, border=3, light="#fff", dark="#000"
    )
