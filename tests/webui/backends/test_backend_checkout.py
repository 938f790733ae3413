"""Clone, update, roll back; git and Python that fail. The repositories are on this disk."""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from pathlib import Path

import pytest
from fake_backends import add_version, git, make_extension, none_left

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui.backends.checkout import prepare, rollback
from fastsd_lib.webui.backends.config import BACKENDS
from fastsd_lib.webui.backends.git import explain

A1111 = BACKENDS["a1111"]


def version(checkout) -> str:
    return (checkout.places.code / "version.txt").read_text()


def quiet(_line: str) -> None:
    pass


def test_a_tag_a_branch_and_a_commit_are_fetched_and_switched_between(config_for, repository):
    first = git(repository, "rev-parse", "v1")
    add_version(repository, "2", "well")
    one = prepare(A1111, config_for(ref="v1"), quiet)
    assert (version(one), one.commit) == ("1", first)
    assert not (one.places.code / "other").exists()
    (one.places.code / "launch.py").write_text("somebody edited this")
    (one.places.code / "repositories").mkdir()  # what a start leaves
    two = prepare(A1111, config_for(ref="master"), quiet)
    assert version(two) == "2" and "somebody" not in (two.places.code / "launch.py").read_text()
    assert (two.places.code / "repositories").is_dir()
    assert version(prepare(A1111, config_for(ref=first), quiet)) == "1"


def test_a_ref_that_is_there_needs_no_network_and_an_update_asks_again(config_for, repository):
    prepare(A1111, config_for(ref="master"), quiet)
    add_version(repository, "2", "well")
    assert version(prepare(A1111, config_for(ref="master"), quiet)) == "1"
    assert version(prepare(A1111, config_for(ref="master", update=True), quiet)) == "2"
    repository.rename(repository.with_name("gone"))
    lines = []
    assert version(prepare(A1111, config_for(ref="master", update=True), lines.append)) == "2"
    assert any("does not exist" in line and "stays at" in line for line in lines)


def test_rollback_returns_to_the_newest_that_worked_without_network(config_for, repository):
    prepare(A1111, config_for(ref="v1"), quiet).worked()
    add_version(repository, "2", "well")
    prepare(A1111, config_for(ref="v2"), quiet).worked()
    add_version(repository, "3", "fails")
    prepare(A1111, config_for(ref="v3"), quiet)
    repository.rename(repository.with_name("gone"))
    lines = []
    back = rollback(A1111, config_for(ref="v3"), lines.append)
    assert version(back) == "2" and back.commit in lines[0]
    assert version(rollback(A1111, config_for(ref="v3"), quiet)) == "1"


def test_without_a_version_that_worked_there_is_no_way_back(config_for):
    prepare(A1111, config_for(), quiet)
    with pytest.raises(UserError, match="No earlier version of AUTOMATIC1111") as error:
        rollback(A1111, config_for(), quiet)
    assert "ref=" in error.value.fix


# ------------------------------------------------------------------ failures


def test_what_git_cannot_fetch_is_one_line(config_for, repository, tmp_path):
    for more, meaning in (
        ({"ref": "v9"}, "has no 'v9'"),
        ({"ref": "0" * 40}, "has no '0000"),
        ({"ref": "abcdef12"}, "cut short"),
        ({"ref": f"--upload-pack=touch {tmp_path / 'made'}"}, "no tag, branch or commit"),
        ({"repository": str(tmp_path / "none")}, "does not exist"),
    ):
        with pytest.raises(UserError, match=meaning) as error:
            prepare(A1111, config_for(**more), quiet)
        assert "\n" not in error.value.message and error.value.fix
        assert not (tmp_path / "local" / "a1111" / "code").exists() and not (tmp_path / "made").exists()


def test_a_model_that_is_not_there_is_named_before_anything_is_fetched(config_for, tmp_path):
    with pytest.raises(UserError, match=r"no model .*gone\.safetensors"):
        prepare(A1111, config_for(model=tmp_path / "gone.safetensors"), quiet)
    assert not (tmp_path / "local" / "a1111" / "code").exists()


@pytest.mark.parametrize(
    "said, meant",
    [
        ("fatal: unable to access 'x': Could not resolve host: github.com", "no network"),
        ("fatal: could not read Username for 'https://github.com': terminal prompts disabled", "not public"),
        ("fatal: repository 'https://github.com/a/b/' not found", "does not exist"),
        ("error: RPC failed; curl 56\nfatal: early EOF", "broke off"),
        ("fatal: write error: No space left on device", "disk is full"),
        ("fatal: something new https://me:token@host/x", "something new"),
    ],
)
def test_gits_words_are_understood_and_its_secrets_not_repeated(said, meant):
    error = explain(said, "https://me:token@github.com/a/b", "v1")
    assert meant in error.message and "\n" not in error.message and "token@" not in str(error)


def fake_program(folder, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!{sys.executable}\n{text}")
    (folder / name).chmod(0o755)


def test_a_git_that_hangs_is_ended_and_leaves_no_half_checkout(config_for, tmp_path, monkeypatch):
    real = os.environ["PATH"]
    fake_program(
        tmp_path / "bin",
        "git",
        "import os, subprocess, sys, time\n"
        "if 'fetch' in sys.argv:\n"
        f"    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)', {str(tmp_path)!r}])\n"
        "    time.sleep(300)\n"
        f"os.environ['PATH'] = {real!r}\n"
        "os.execvp('git', ['git', *sys.argv[1:]])\n",
    )
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{real}")
    begun = time.monotonic()
    with pytest.raises(UserError, match="took longer than 1 s"):
        prepare(A1111, config_for(git_s=1.0), quiet)
    assert time.monotonic() - begun < 6 and none_left(str(tmp_path))
    own = tmp_path / "local" / "a1111"
    assert not (own / "code").exists() and not list(own.glob(".code*"))
    monkeypatch.setenv("PATH", real)
    assert version(prepare(A1111, config_for(), quiet)) == "1"


def test_a_clone_or_a_checkout_that_was_interrupted_does_not_count(config_for, repository, tmp_path):
    own = tmp_path / "local" / "a1111"
    config = config_for()
    (own / "code").mkdir(parents=True)
    (own / "code" / "half.py").touch()  # a folder of which nothing was noted
    (own / ".code.1234.partial").mkdir()  # a process that was killed
    one = prepare(A1111, config, quiet)
    assert version(one) == "1" and not (own / "code" / "half.py").exists()
    assert not (own / ".code.1234.partial").exists()
    (own / "code" / "launch.py").unlink()  # killed in the middle of a checkout
    (own / "code" / ".git" / "index.lock").touch()
    assert (prepare(A1111, config, quiet).places.code / "launch.py").is_file()


def test_another_program_is_refused(config_for, repository):
    git(repository, "rm", "-q", "launch.py")
    add_version(repository, "2", "well")
    with pytest.raises(UserError, match="is no AUTOMATIC1111"):
        prepare(A1111, config_for(ref="v2"), quiet)


def test_without_git_that_is_said(config_for, tmp_path, monkeypatch):
    config = config_for()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="git is not installed") as error:
        prepare(A1111, config, quiet)
    assert "apt-get install git" in error.value.fix


# ------------------------------------------------------------------ extension, settings


def test_the_controlnet_extension_is_fetched_at_its_ref_once(config_for, tmp_path):
    commit = make_extension(tmp_path / "extension")
    more = {
        "controlnet": True,
        "controlnet_repository": str(tmp_path / "extension"),
        "controlnet_ref": commit,
    }
    one = prepare(A1111, config_for(**more), quiet)
    folder = one.places.data / "extensions" / "sd-webui-controlnet"
    assert (folder / "preload.py").is_file() and git(folder, "rev-parse", "HEAD") == commit
    (tmp_path / "extension").rename(tmp_path / "gone")
    prepare(A1111, config_for(**more), quiet)
    assert not list(one.places.data.glob(".controlnet*"))


def test_settings_begin_with_ours_and_the_users_stay(config_for):
    one = prepare(A1111, config_for(), quiet)
    file = one.places.settings / "config.json"
    begun = json.loads(file.read_text())
    assert begun["outdir_samples"] == str(one.places.outputs) and "sd_vae" in begun["quicksettings_list"]
    file.write_text(json.dumps({"quicksettings_list": ["mine"], "CLIP_stop_at_last_layers": 2}))
    prepare(A1111, config_for(), quiet)
    kept = json.loads(file.read_text())
    assert kept["quicksettings_list"] == ["mine"] and kept["CLIP_stop_at_last_layers"] == 2
    file.write_text("{broken")
    with pytest.raises(UserError, match="cannot be read"):
        prepare(A1111, config_for(), quiet)
    assert stat.S_IMODE(one.places.log.stat().st_mode) == 0o600


# ------------------------------------------------------------------ Python


def test_without_a_python_that_fits_it_says_which_and_what_to_install(config_for, tmp_path, monkeypatch):
    from fastsd_lib.webui.backends import python_env

    real, config = os.environ["PATH"], config_for()
    (tmp_path / "local" / "a1111" / "venv").unlink()
    fake_program(tmp_path / "bin", "python3", "print('3.13')\n")
    git_program = next(f"{one}/git" for one in real.split(":") if os.access(f"{one}/git", os.X_OK))
    (tmp_path / "bin" / "git").symlink_to(git_program)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(python_env.sys, "executable", str(tmp_path / "bin" / "python3"))
    with pytest.raises(UserError, match=r"AUTOMATIC1111 needs Python 3\.10 or 3\.11; here is 3\.13") as error:
        prepare(A1111, config, quiet)
    assert "uv" in error.value.fix and "python3.10-venv" in error.value.fix


def test_a_python_that_was_named_and_does_not_fit_is_refused(config_for, tmp_path):
    fake_program(tmp_path / "bin", "mine", "print('3.13')\n")
    for python, reason in (("mine", r"is Python 3\.13"), ("none", "does not run")):
        config = config_for(python=tmp_path / "bin" / python)
        venv = tmp_path / "local" / "a1111" / "venv"
        venv.unlink()
        with pytest.raises(UserError, match=reason):
            prepare(A1111, config, quiet)


def test_an_environment_is_made_by_uv_where_it_is_and_made_again_when_it_broke(
    config_for, tmp_path, monkeypatch
):
    fake_program(
        tmp_path / "bin",
        "uv",
        "import json, sys\nfrom pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from fake_backends import make_venv\n"
        f"Path({str(tmp_path / 'asked.json')!r}).write_text(json.dumps(sys.argv[1:]))\n"
        "make_venv(Path(sys.argv[-1]))\n",
    )
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    config = config_for()
    venv = tmp_path / "local" / "a1111" / "venv"
    venv.unlink()
    (venv / "bin").mkdir(parents=True)  # half of one
    one = prepare(A1111, config, quiet)
    asked = json.loads((tmp_path / "asked.json").read_text())
    assert asked[:4] == ["venv", "--seed", "--python", "3.10"] and one.python.is_file()
