"""Scripts and merges in a real browser: what is chosen there is what is drawn and written."""

from __future__ import annotations

import shutil

import pytest
from page_server import browser_at, open_tab, served_page
from PIL import Image

from fastsd_lib.core.errors import UserError
from fastsd_lib.formats.single_file import export_single_file
from fastsd_lib.generation.infotext import read_infotext
from fastsd_lib.models import registry
from fastsd_lib.webui.tabs import merger, scripts_panel

LONG_MS = 60_000
PLOT = "script_txt2img_xyz_plot"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    first = folder / "models" / "Stable-diffusion" / "first.safetensors"
    export_single_file(registry.base_model(registry.EMBEDDED), first)
    shutil.copy(first, first.with_name("second.safetensors"))
    with served_page(folder) as served:
        yield served


#: A preview stands there before.
DRAWN = """document.querySelector('#txt2img_gallery img') !== null
    && !document.body.classList.contains('txt2img-busy')"""


def pick(page, box: str, label: str) -> None:
    page.locator(f"#{box} input").first.click()
    page.get_by_role("option", name=label, exact=True).first.click()


def type_in(page, box: str, text: str) -> None:
    page.locator(f"#{box} textarea, #{box} input").first.fill(text)


def saved_grids(served) -> list:
    return sorted((served.folder / "outputs" / "txt2img-grids").rglob("*.png"))


def test_a_plot_is_drawn_as_it_is_written_on_the_page(served):
    with browser_at(served) as page:
        type_in(page, "txt2img_prompt", "a red star")
        type_in(page, "txt2img_steps", "2")
        pick(page, "txt2img_script_list", "X/Y/Z plot")
        page.locator(f"#{PLOT}_x_values").wait_for(state="visible")
        type_in(page, f"{PLOT}_x_values", "1-3")
        pick(page, f"{PLOT}_y_type", "Sampler")
        page.locator(f"#{PLOT}_y_values_dropdown").wait_for(state="visible")
        for sampler in ("Euler a", "DDIM"):
            pick(page, f"{PLOT}_y_values_dropdown", sampler)
        page.keyboard.press("Escape")
        page.locator("#txt2img_generate").click()
        page.wait_for_function(DRAWN, timeout=LONG_MS)
    (path,) = saved_grids(served)
    with Image.open(path) as grid:
        read = read_infotext(grid.info["parameters"])
        assert grid.width > 3 * 64 and grid.height > 2 * 64
    assert (read["Script"], read["X Type"], read["X Values"]) == ("X/Y/Z plot", "Seed", "1-3")
    assert (read["Y Type"], read["Y Values"]) == ("Sampler", "Euler a,DDIM")


def test_filling_and_swapping_axes(served):
    with browser_at(served) as page:
        pick(page, "txt2img_script_list", "X/Y/Z plot")
        page.locator(f"#{PLOT}_x_values").wait_for(state="visible")
        pick(page, f"{PLOT}_x_type", "Checkpoint name")
        page.locator("#xyz_grid_fill_x_txt2img").wait_for(state="visible")
        page.locator("#xyz_grid_fill_x_txt2img").click()
        page.wait_for_function(
            f"document.querySelector('#{PLOT}_x_values_dropdown').textContent.includes('second')"
        )
        page.locator(f"#{PLOT}_swap_xy_axes").click()
        page.wait_for_function(
            f"document.querySelector('#{PLOT}_y_values_dropdown')?.textContent.includes('second')"
        )
        assert page.locator(f"#{PLOT}_y_type input").first.input_value() == "Checkpoint name"
        assert page.locator(f"#{PLOT}_x_type input").first.input_value() == "Nothing"
        page.locator(f"#{PLOT}_csv_mode input").check()
        page.wait_for_function(
            f"(document.querySelector('#{PLOT}_y_values textarea, #{PLOT}_y_values input')?.value || '')"
            ".includes('first,second')"
        )


def test_a_merge_begun_on_the_page_is_in_the_list_of_checkpoints(served):
    with browser_at(served) as page:
        open_tab(page, "Checkpoint Merger")
        pick(page, "modelmerger_primary_model_name", "first")
        pick(page, "modelmerger_secondary_model_name", "second")
        type_in(page, "modelmerger_custom_name", "both")
        page.locator("#modelmerger_merge").click()
        page.locator("#modelmerger_result", has_text="is in the list of checkpoints").wait_for(
            timeout=LONG_MS
        )
        page.locator("#setting_sd_model_checkpoint input").first.click()
        page.get_by_role("option", name="both", exact=True).first.wait_for()
        page.keyboard.press("Escape")
        page.locator("#modelmerger_merge").click()  # the name is taken now
        page.locator(".toast-body", has_text="'both' is there already").wait_for()
    assert (served.folder / "models" / "Stable-diffusion" / "both.safetensors").is_file()


# ------------------------------------------------------------------ without a browser


def test_the_lines_of_a_file_are_taken_and_what_is_no_text_is_refused(tmp_path):
    import gradio as gr

    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_text("\ufeffa cat\na dog\n", encoding="utf-8")
    bad.write_bytes(b"\xff\xfe\x00\x81")
    assert scripts_panel._text_of(str(good)) == "a cat\na dog\n"
    with pytest.raises(gr.Error, match=r"bad\.txt is no text"):
        scripts_panel._text_of(str(bad))


def test_metadata_that_is_no_json_object_is_refused():
    usual = {"a": "first", "b": "", "c": "", "method": "none", "dtype": ""}
    assert merger._read(usual | {"metadata": '{"by": 1}'})["metadata"] == {"by": 1}
    assert merger._read(usual | {"metadata": ""})["dtype"] is None
    for text in ("{", "[1]", "[" * 100_000):
        with pytest.raises(UserError, match="no JSON object"):
            merger._read(usual | {"metadata": text})
