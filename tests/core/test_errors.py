from __future__ import annotations

import pytest

from fastsd_lib.core.errors import UserError, require


def test_an_error_says_what_is_wrong_and_then_what_to_do():
    error = UserError("The folder is empty.", fix="add photos.")
    assert str(error) == "The folder is empty.\n  -> add photos."
    assert str(UserError("The folder is empty.")) == "The folder is empty."


def test_a_notebook_shows_the_two_lines_and_no_traceback():
    """IPython's own hook, as a real shell calls it."""
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    shown = []
    shell._showtraceback = lambda kind, value, lines: shown.append("\n".join(lines))
    shell.run_cell(
        "from fastsd_lib.core.errors import UserError\nraise UserError('Empty.', fix='add photos.')"
    )
    assert shown == ["Empty.\n  -> add photos."]


def test_a_missing_package_is_named_with_the_command_that_installs_it():
    require("json", group="core")
    with pytest.raises(UserError, match="no_such_package is not installed here") as error:
        require("no_such_package", group="train")
    assert "python3 -m fastsd_lib install train" in error.value.fix
