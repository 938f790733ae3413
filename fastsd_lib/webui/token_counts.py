"""/internal/token-count: how long the prompts are, as the current model reads them."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from pydantic import Field

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.prompt_tags import split_tags, without_comments
from fastsd_lib.generation.request import GenerationRequest
from fastsd_lib.generation.styles import apply_styles
from fastsd_lib.webui.a1111 import known_styles
from fastsd_lib.webui.a1111_models import Body, Name, Steps, Text
from fastsd_lib.webui.context import ApiContext


class Prompts(Body):
    prompt: Text = ""
    negative_prompt: Text = ""
    styles: list[Name] = Field([], max_length=100)
    steps: Steps = 20


class Count(Body):
    """Tokens, and how many there would be room for before the model reads one stretch more."""

    tokens: int
    room: int


class Counts(Body):
    prompt: Count | None = None
    negative_prompt: Count | None = None


def router(context: ApiContext) -> APIRouter:
    routes = APIRouter(prefix="/internal", tags=["internal"])

    @routes.post("/token-count", response_model=Counts)
    async def token_count(prompts: Prompts) -> Any:
        """Of both prompts with their styles; null for a model that does not read in stretches."""
        told = context.service.on_worker(lambda: counted(prompts, context))
        return await asyncio.shield(asyncio.wrap_future(told))

    return routes


def counted(prompts: Prompts, context: ApiContext) -> Counts:
    """Asks the current model, if it is in memory: for the thread that draws. Nothing for what it cannot read."""
    from fastsd_lib.generation.conditioning import encode  # torch
    from fastsd_lib.generation.engine import Engine

    shelf = context.service.shelf
    if shelf.current not in shelf.loaded():
        return Counts()
    engine = shelf.engine()
    if not isinstance(engine, Engine):
        return Counts()
    styles = known_styles(context) if prompts.styles else {}
    texts = apply_styles(prompts.prompt, prompts.negative_prompt, prompts.styles, styles)[:2]
    bare = [split_tags(without_comments(text))[0] for text in texts]
    request = GenerationRequest(bare[0], bare[1], inference_steps=prompts.steps)
    try:
        words = shelf.library.networks.choose(request, engine.parts).embeddings
        read = encode(engine.parts, request, embeddings=words)
    except UserError:  # too long, or a weight that is no number: Generate will say so
        return Counts()
    room = read.reader.reader.room
    each = (Count(tokens=n, room=max(-(-n // room), 1) * room) for n in (read.tokens, read.negative_tokens))
    return Counts(**dict(zip(("prompt", "negative_prompt"), each, strict=True)))
