import nbformat
import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.workflows import notebook


def _write(path, *sources):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_fields_are_rewritten_as_colab_does_and_only_those_asked_for(tmp_path):
    path = _write(
        tmp_path / "a.ipynb",
        '#@title 1 · A\nname = "x"  #@param {type:"string"}\nsteps = 5  #@param {type:"integer"}\nother = 1',
    )
    book = nbformat.read(path, as_version=4)
    notebook.set_parameters(book, {"name": 'it\'s "new"'})
    assert book.cells[0].source.splitlines()[1:] == [
        'name = \'it\\\'s "new"\'  #@param {type:"string"}',
        'steps = 5  #@param {type:"integer"}',
        "other = 1",
    ]
    with pytest.raises(UserError, match="no field colour"):
        notebook.set_parameters(book, {"colour": "red"})


def test_a_notebook_runs_with_its_values_and_is_written_with_what_it_printed(tmp_path):
    path = _write(
        tmp_path / "a.ipynb",
        '#@title 1 · A\nsteps = 5  #@param {type:"integer"}',
        "#@title 2 · B\nprint(steps * 2)",
    )
    seen, before = [], path.read_bytes()
    out = notebook.execute(path, {"steps": 21}, tmp_path / "out" / "a.ipynb", seen.append)
    assert nbformat.read(out, as_version=4).cells[1].outputs[0].text == "42\n"
    assert [(done.title, done.number, done.total) for done in seen] == [("1 · A", 1, 2), ("2 · B", 2, 2)]
    assert path.read_bytes() == before  # the original stays clean


def test_a_cell_that_fails_is_named_and_what_ran_before_it_is_kept(tmp_path):
    path = _write(
        tmp_path / "a.ipynb", "#@title 1 · A\nprint('kept')", "#@title 2 · Broken\nint('x')", "print('never')"
    )
    with pytest.raises(UserError, match=r"2 · Broken.*invalid literal") as caught:
        notebook.execute(path, {}, tmp_path / "out.ipynb")
    assert "out.ipynb" in caught.value.fix
    assert "kept" in (tmp_path / "out.ipynb").read_text()
