"""The address as a picture for a phone."""

from __future__ import annotations

import re

import segno

from fastsd_lib.webui.tunnels.qr import qr_svg, qr_text

URL = "https://some-words-of-a-tunnel.trycloudflare.com"
HALVES = {" ": (1, 1), "▀": (0, 1), "▄": (1, 0), "█": (0, 0)}  # (upper, lower): 1 is a dark square


def test_the_terminal_shows_every_square_of_the_code_with_a_light_edge():
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in qr_text(URL).splitlines()]
    rows = [[HALVES[letter][half] for letter in line] for line in lines if line for half in (0, 1)]
    code = [list(row) for row in segno.make(URL, error="m", micro=False).matrix_iter(border=2)]
    assert rows[: len(code)] == code and len(lines[0]) < 50


def test_the_page_gets_one_element_that_fetches_nothing():
    svg = qr_svg(URL)
    assert svg.startswith("<svg") and svg.endswith("</svg>")
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "") and "#fff" in svg
