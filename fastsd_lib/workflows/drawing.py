"""Pictures from a model of any kind: what the command `generate` and Python programs use.

engine = drawing.open_engine("embedded")
pictures = engine.generate(GenerationRequest("a photo of a red star", sampler="Euler a"))
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastsd_lib.core.errors import UserError, require
from fastsd_lib.core.progress import ConsoleProgress
from fastsd_lib.environment import tokens
from fastsd_lib.environment.hosts import default_root
from fastsd_lib.generation.library import LibraryFolders
from fastsd_lib.models import registry

if TYPE_CHECKING:
    from fastsd_lib.generation.engine import Engine
    from fastsd_lib.generation.pipeline_engine import PipelineEngine

SUBJECT = "{subject}"  # in a prompt for a session: its rare token and class noun, "sks cat"
MOST_PROMPTS = 10_000


def library_folders(folder: Path | None = None) -> LibraryFolders:
    """Where LoRA files, embeddings, ControlNets, VAEs lie: below `folder` by A1111's names, then what fastsd brings.

    `folder` None: where sessions live (Drive on Colab, ~/fastsd elsewhere). UserError when it is not there.
    """
    if folder is not None and not folder.is_dir():
        raise UserError(
            f"There is no folder {folder}.", fix="name one that holds models/Lora, embeddings ..."
        )
    shipped = registry.EXTRAS_FOLDER
    extras = LibraryFolders(
        loras=(shipped / "Lora",), embeddings=(shipped / "embeddings",), controlnets=(shipped / "ControlNet",)
    )
    return LibraryFolders.under(folder or default_root()).and_then(extras)


def open_engine(
    model: str | Path = registry.EMBEDDED,
    vae: Path | None = None,
    library: Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    config_from: Path | None = None,
) -> Engine | PipelineEngine:
    """Load a model with all that prompts may name; load once, ask often.

    `model`: "embedded", a Hugging Face id, a Diffusers folder or a single file. `library`: as for
    `library_folders`. `vae`: a VAE to use instead of the model's own. Raises UserError for what is not there.
    """
    folders = library_folders(library)
    files = registry.base_model(model, lambda: tokens.hub_token(None), default_root(), ConsoleProgress())
    require("diffusers", group="webui")
    from fastsd_lib.generation.engine import load_engine
    from fastsd_lib.generation.pipeline_engine import PipelineEngine
    from fastsd_lib.generation.resources import Library

    engine = load_engine(files, device, dtype, threads, config_from)
    if isinstance(engine, PipelineEngine):
        if vae is not None:
            raise UserError(f"{engine.name} is drawn with its own VAE.", fix="leave --vae out.")
        return engine
    engine.library = Library.of(folders)
    if vae is not None:
        from fastsd_lib.formats.vae_file import load_vae

        engine.parts.vae = load_vae(vae, engine.parts)
    return engine


def model_of_session(name: str, root: Path | None = None) -> tuple[Path, str]:
    """The session's trained model and its instance prompt. UserError when there is none yet."""
    from fastsd_lib.core.config import load_config
    from fastsd_lib.training.config import DreamBoothConfig
    from fastsd_lib.workflows import dreambooth

    session = dreambooth.open_session(name, root=root, create_if_missing=False)
    if not session.model_file.is_file():
        raise UserError(
            f"{session.name} has no trained model yet.", fix=f"python3 -m fastsd_lib train {session.name}"
        )
    prompt = load_config(DreamBoothConfig, session.recipe).instance_prompt if session.recipe.is_file() else ""
    return session.model_file, prompt


def with_subject(prompt: str, instance_prompt: str) -> str:
    """The prompt with "{subject}" filled in by the words that the session was trained with, "sks cat".

    A prompt that neither holds {subject} nor these words gets them in front.
    """
    words = instance_prompt.split()
    subject = " ".join(words[words.index("of") + 1 :] if "of" in words[:-1] else words)
    if SUBJECT in prompt:
        return prompt.replace(SUBJECT, subject)
    return prompt if subject in prompt else f"{subject}, {prompt}" if prompt else subject


def prompts_in(file: Path) -> list[str]:
    """One prompt per line; empty lines and lines that begin with # are left out. UserError when none is left."""
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(
            f"{file} is not text in UTF-8.", fix="save it as UTF-8, one prompt per line."
        ) from None
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}.", fix="name a text file, one prompt per line.") from None
    prompts = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not 1 <= len(prompts) <= MOST_PROMPTS:
        raise UserError(
            f"{file} holds {len(prompts):,} prompts.", fix=f"write 1 to {MOST_PROMPTS:,}, one a line."
        )
    return prompts
