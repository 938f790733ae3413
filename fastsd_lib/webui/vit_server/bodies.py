"""What clients send and get, in the words of Hugging Face's Inference Endpoints."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from fastsd_lib.webui.api_errors import Refused

MOST_LABELS = 100_000
_Text = Annotated[StrictStr, Field(min_length=1)]
Inputs = _Text | Annotated[list[_Text], Field(min_length=1)]
FunctionToApply = Literal["softmax", "sigmoid", "none"]
ABOUT_INPUTS = (
    "One picture or a list of them: a PNG, JPEG, WEBP, GIF, BMP, TIFF or AVIF file in base64, bare or as "
    "data:image/png;base64,...; where the server allows it, an https address"
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ClassifyParameters(_Strict):
    """As transformers' image-classification pipeline takes them."""

    top_k: Annotated[StrictInt, Field(ge=1, le=MOST_LABELS)] | None = Field(
        None, description="how many labels, best first; all when there are fewer"
    )
    function_to_apply: FunctionToApply | None = Field(
        None,
        description="what makes scores of logits. Unless said: calibrated probabilities where the model was "
        "calibrated, else softmax; sigmoid for a model with several labels per picture",
    )


class EmbedParameters(_Strict):
    normalize: StrictBool | None = Field(
        None, description="to length 1; unless said as the server was started"
    )


class ClassifyBody(_Strict):
    inputs: Inputs = Field(description=ABOUT_INPUTS)
    parameters: ClassifyParameters | None = None


class EmbedBody(_Strict):
    inputs: Inputs = Field(description=ABOUT_INPUTS)
    parameters: EmbedParameters | None = None


class Label(BaseModel):
    label: str
    score: float


class ErrorAnswer(BaseModel):
    """What went wrong: a sentence that names the value, and what to send instead."""

    error: str
    detail: str
    error_type: str = ""
    request_id: str = ""


def read_json(model: type[BaseModel], raw: bytes) -> Any:
    """The body as `model`. Refused for what is none; depth is bounded by the parser."""
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise refused(error) from None


def read_query(model: type[BaseModel], query: dict[str, str]) -> Any:
    """Parameters from the address, as the toolkit takes them for bodies that are pictures: ?top_k=3."""
    words: dict[str, Any] = {"true": True, "false": False}
    values = {
        name: int(text) if text.isdecimal() and len(text) < 20 else words.get(text, text)
        for name, text in query.items()
    }
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise refused(error) from None


def refused(error: ValidationError) -> Refused:
    """The first fault in a line, with the value shortened: a picture in base64 is none to read."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "json_invalid":
        return Refused(400, f"The body is no JSON: {first['msg'].removeprefix('Invalid JSON: ')}.", _FIX)
    if first["type"] == "extra_forbidden":
        return Refused(422, f"There is no {where[:60]!r} here.", "leave it out.")
    if first["type"] == "missing":
        return Refused(422, f"The body has no {where!r}.", _FIX)
    sent = f"(sent: {repr(_short(first['input']))[:60]})"
    if first["loc"][:1] == ("inputs",):
        return Refused(422, f"inputs should be a picture in base64, or a list of such texts {sent}.", _FIX)
    said = first["msg"][:1].lower() + first["msg"][1:]
    return Refused(422, f"{where or 'the body'}: {said} {sent}.", _FIX)


def _short(value: Any) -> Any:
    return value[:60] if isinstance(value, str | list) else value


_FIX = 'send {"inputs": "<the picture in base64>", "parameters": {}}, or the picture itself as image/jpeg.'
