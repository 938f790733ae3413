"""A trained model to a Hugging Face repository, with a card that says what it is and how it was made."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastsd_lib.core.config import load_config
from fastsd_lib.core.errors import UserError, require
from fastsd_lib.core.progress import Report, silent
from fastsd_lib.core.text import one_line
from fastsd_lib.environment.hosts import default_root
from fastsd_lib.environment.tokens import hub_token
from fastsd_lib.models.known_models import EMBEDDED, HUB_ID, find_known, public_name
from fastsd_lib.sessions import session as sessions
from fastsd_lib.sessions.archive import size_text
from fastsd_lib.sessions.contents import SHOWS_PHOTOS, Item, contents
from fastsd_lib.sessions.session import Session
from fastsd_lib.training.config import DreamBoothConfig
from fastsd_lib.workflows import hub

MAX_SAMPLES = 8
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True)
class Publication:
    """What goes to a repository: files of the session under their names there, and texts made for it."""

    repository: str
    private: bool
    files: Mapping[str, Path]
    texts: Mapping[str, str]  # README.md, session.json

    @property
    def bytes(self) -> int:
        made = sum(len(text.encode()) for text in self.texts.values())
        return made + sum(path.stat().st_size for path in self.files.values())

    def rows(self) -> list[tuple[str, int]]:
        """(name, bytes) of all that goes, by name."""
        rows = [(name, len(text.encode())) for name, text in self.texts.items()]
        return sorted(rows + [(name, path.stat().st_size) for name, path in self.files.items()])

    def lines(self) -> list[str]:
        """Where it goes, each file, and the card."""
        who = "private: only you see it" if self.private else "PUBLIC: everybody sees it"
        said = [f"{self.repository} on Hugging Face ({who}), {size_text(self.bytes)}:"]
        said += [f"  {name} ({size_text(size)})" for name, size in self.rows()]
        return [*said, "", "README.md:", *(f"  {line}" for line in self.texts["README.md"].splitlines())]


def plan(
    session: Session, repository: str, *, public: bool = False, with_photos: bool = False
) -> Publication:
    """What `publish` would send. Nothing is sent or changed.

    UserError when the session has no exported model, or the repository's name is none.
    """
    _check_repository(repository)
    manifest = sessions.read_manifest(session)
    items = contents(session)
    models = [item for item in items if item.part == "model" and item.name.endswith(".safetensors")]
    if not models:
        raise UserError(
            f"Session {session.name!r} has no exported model yet.",
            fix=f"train it to its end: python3 -m fastsd_lib train {session.name} --resume",
        )
    samples = _samples(items)
    chosen = [*models, *samples]
    if with_photos:
        chosen += [item for item in items if item.part == "photos"]
    files = {item.name: item.path for item in chosen}
    if session.recipe.is_file():
        files["recipe.yaml"] = session.recipe
    base = public_base(manifest.get("base_model"))
    texts = {
        "README.md": model_card(
            session, base, [item.name for item in models], [item.name for item in samples]
        ),
        "session.json": _public_manifest(session, manifest, base),
    }
    return Publication(repository, not public, files, texts)


def publish(publication: Publication, root: str | Path | None = None, report: Report = silent) -> str:
    """Send it in one commit; returns the repository's address. The token is HF_TOKEN's or of `hf auth login`.

    UserError without a token, for a repository that is public while this should be private, and for whatever the
    Hub refuses.
    """
    require("huggingface_hub", group="core")
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import disable_progress_bars

    token = hub_token(Path(root) if root else default_root())
    name = publication.repository
    if not token:
        raise UserError(
            "There is no Hugging Face token here.",
            fix="make one with the role Write at huggingface.co/settings/tokens; set HF_TOKEN, or: hf auth login",
        )
    disable_progress_bars()
    api = HfApi(token=token)
    try:
        made = api.create_repo(name, private=publication.private, exist_ok=True)
        if publication.private and not api.repo_info(made.repo_id).private:
            raise UserError(
                f"{made.repo_id} is there already, and it is public.",
                fix="take another name, or add --public if everybody may see the model.",
            )
        operations = [CommitOperationAdd(there, str(here)) for there, here in publication.files.items()]
        operations += [CommitOperationAdd(there, text.encode()) for there, text in publication.texts.items()]
        api.create_commit(made.repo_id, operations, commit_message="Publish from fastsd")
    except UserError:
        raise
    except Exception as error:  # of httpx or requests, by version
        if isinstance(error, OSError) and error.errno and error.filename:
            raise
        raise hub.plain_error(_first_cause(error), name, token) from None
    return str(made)


def public_base(base: Any) -> str:
    """The base model as strangers may read it: a Hub id or "embedded"; a path of this machine is ""."""
    base = str(base or "")
    if known := find_known(base):
        return public_name(known)
    return base if HUB_ID.fullmatch(base) and not Path(base).exists() else ""


def model_card(session: Session, base: str, models: list[str], samples: list[str]) -> str:
    """README.md with the Hub's front matter: what the model is, its words, its recipe, a picture."""
    import yaml

    recipe = _recipe(session)
    prompt = one_line(str(recipe.get("instance_prompt") or ""))
    model = find_known(base)
    lora = any("lora" in name.lower().removeprefix(session.name.lower()) for name in models)
    front: dict[str, Any] = {}
    if base and base != EMBEDDED:
        front["base_model"] = base
    front["license"] = _LICENCES.get(model.licence if model else "", "other")
    front["library_name"] = "diffusers"
    front["pipeline_tag"] = "text-to-image"
    front["tags"] = ["text-to-image", "dreambooth", "stable-diffusion", "fastsd", *(["lora"] if lora else [])]
    if prompt:
        front["instance_prompt"] = prompt
        widget: dict[str, Any] = {"text": prompt}
        front["widget"] = [widget | ({"output": {"url": samples[0]}} if samples else {})]
    title = one_line(session.name).translate(_MARKDOWN)
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {title}",
        "",
    ]
    made_from = f"[{base}](https://huggingface.co/{base})" if "/" in base else base or "a private base model"
    lines += [f"A DreamBooth model made with fastsd from {made_from}.", ""]
    if prompt:
        lines += [f"Its subject answers to `{prompt.replace('`', chr(39))}`.", ""]
    lines += [f"- `{name}`" for name in models] + [""]
    lines += [f"![{prompt.translate(_MARKDOWN)}]({quote(samples[0])})", ""] if samples else []
    if recipe:
        lines += ["## Recipe", "", "| setting | value |", "|---|---|"]
        lines += [
            f"| {key} | {one_line(str(value)).translate(_MARKDOWN) or '-'} |" for key, value in recipe.items()
        ]
        lines += [""]
    if front["license"] == "other":
        lines += ["The licence is that of the base model.", ""]
    return "\n".join(lines)


_LICENCES = {
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
    "CreativeML OpenRAIL-M": "creativeml-openrail-m",
    "CreativeML OpenRAIL++-M": "openrail++",
}
_MARKDOWN = str.maketrans({letter: f"\\{letter}" for letter in "\\`*_[]<>|#!"})


def _recipe(session: Session) -> dict[str, Any]:
    """The choices of the last run, {} when they cannot be read."""
    import dataclasses

    try:
        return dataclasses.asdict(load_config(DreamBoothConfig, session.recipe))
    except (UserError, OSError):
        return {}


def _samples(items: list[Item]) -> list[Item]:
    """The newest pictures that the model drew while it was trained; none that shows a photo."""
    drawn = [
        item
        for item in items
        if re.fullmatch(r"samples/step_\d+_\d+\.png", item.name) and item.name not in SHOWS_PHOTOS
    ]
    newest = max((item.name.split("_")[1] for item in drawn), default="")
    return [item for item in drawn if item.name.split("_")[1] == newest][:MAX_SAMPLES]


def _public_manifest(session: Session, manifest: Mapping[str, Any], base: str) -> str:
    """session.json without history and paths of this machine, so that `session import` can read it."""
    public = {
        "schema": sessions.SCHEMA,
        "name": session.name,
        "created": manifest.get("created"),
        "base_model": base or None,
        "concepts": manifest.get("concepts", []),
        "history": [],
    }
    return json.dumps(public, indent=2, ensure_ascii=False) + "\n"


def _check_repository(repository: str) -> None:
    if (HUB_ID.fullmatch(repository) or _NAME.fullmatch(repository)) and not re.search(
        r"\.\.|--|[.-]$|\.git$", repository
    ):
        return
    tail = (
        re.sub(
            r"[^\w.-]+", "-", repository.rstrip("/").removesuffix(".git").split("/")[-1], flags=re.ASCII
        ).strip(".-")
        or "my-model"
    )
    raise UserError(
        f"{repository[:100]!r} cannot be the name of a Hugging Face repository.",
        fix=f"take the form user/name, such as me/{re.sub('-+', '-', tail)}",
    )


def _first_cause(error: Exception) -> Exception:
    """Uploads run in threads, whose errors come wrapped."""
    while getattr(error, "response", None) is None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error
