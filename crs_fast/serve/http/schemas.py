"""What the HTTP interface takes and gives, as pydantic models. `docs/serving.md` explains it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

DEFAULT_BEAMS = 50


def whole_characters(text: str) -> str:
    """The text itself. JSON can spell half of a surrogate pair, which no tokenizer can take.

    Raises:
        ValueError: the text holds such a half.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be text that UTF-8 can hold (got a lone surrogate)") from None
    return text


Utf8 = Annotated[str, AfterValidator(whole_characters)]


PerGroup = Annotated[int, Field(ge=1)]


def joined_parts(content: Any) -> Any:
    """A message's content as one text: text parts are joined by line breaks, other parts refused.

    Raises:
        ValueError: the content is neither text nor a list of text parts.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise ValueError("must be text, or a list of parts of type 'text'")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("text") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(text, str):
            raise ValueError(
                f"must be text, or a list of parts of type 'text' (got a part of type {kind!r})"
            )
        texts.append(text)
    return "\n".join(texts)


class Message(BaseModel):
    """One utterance. The model knows a user and an assistant; a system message is not shown to it
    (it has never learned from one), and the answer's warnings say so."""

    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[Utf8, BeforeValidator(joined_parts)] = Field(
        description="Text, or a list of parts {'type': 'text', 'text': …}, joined by line breaks."
    )
    shown: list[Utf8] = Field(
        default=[], description="Ids of the items that were listed beside this message."
    )


class Options(BaseModel):
    """What steers a turn beside its messages."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    mode: Literal["chat", "rec"] | None = Field(
        default=None, description="Forces the intent. Without it the model chooses."
    )
    num_items: int = Field(default=10, ge=1, description="The most items to return.")
    exclude: list[Utf8] = Field(
        default=[],
        description="Ids that are neither recommended nor named. Unknown ones are reported.",
    )
    allow: list[Utf8] | None = Field(
        default=None, description="Only these ids may be recommended. Unknown ones are reported."
    )
    groups: list[Utf8] = Field(
        default=[], description="An item must be in one of them. Unknown ones are reported."
    )
    max_per_group: PerGroup | dict[Utf8, PerGroup] | None = Field(
        default=None, description="The most items of one group: of every group, or by its name."
    )
    num_beams: int | None = Field(
        default=None,
        ge=1,
        description="Width of the search: by default 50, or num_items.",
    )
    repeat_named: bool = Field(
        default=False,
        description="Whether items that the conversation names may be recommended again.",
    )
    conversation: Utf8 | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="A name of the client's choice that nobody can guess. Turns under one name "
        "reuse what was computed for the turn before.",
    )
    timeout: float | None = Field(
        default=None, gt=0, description="Seconds after which the turn is given up with status 504."
    )

    @property
    def beams(self) -> int:
        return max(DEFAULT_BEAMS, self.num_items) if self.num_beams is None else self.num_beams


class RespondRequest(Options):
    """A conversation whose next turn is wanted."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "messages": [{"role": "user", "content": "I liked The Matrix, any more?"}],
                    "mode": "rec",
                    "num_items": 5,
                    "exclude": [],
                    "stream": False,
                }
            ]
        }
    )

    messages: list[Message] = Field(min_length=1)
    max_new_tokens: int = Field(default=64, ge=1, description="The most tokens of the reply.")
    do_sample: bool = Field(default=False, description="Whether the reply's words are sampled.")
    temperature: float = Field(default=1.0, gt=0, le=10)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63, description="Of the sampled words.")
    stream: bool = Field(default=False, description="Server-sent events instead of JSON.")


class Item(BaseModel):
    """One recommended item. `score` is a sum of log-probabilities. `named_before` says that the
    item was named or shown in the conversation, so that it is repeated rather than new."""

    id: str
    title: str
    score: float
    named_before: bool = False


class Timings(BaseModel):
    """Milliseconds of each stage; `total_ms` from the arrival in the queue to the end."""

    queue_ms: float
    prefill_ms: float
    rank_ms: float
    write_ms: float
    total_ms: float


class Usage(BaseModel):
    """Tokens read and written; `cached_tokens` are those of `prompt_tokens` that were not computed
    again."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class RespondAnswer(BaseModel):
    """The next turn: intent, items (best first; none in mode "chat") and reply."""

    mode: str = Field(description="'chat' or 'rec'.")
    items: list[Item]
    text: str
    rec_probability: float = Field(description="The model's probability of 'rec' against 'chat'.")
    named: list[str] = Field(description="Ids of the items that the reply names, in order.")
    already_named: list[str] = Field(
        description="Ids that were not recommended because they were named or shown before; with "
        "repeat_named there are none."
    )
    unknown_items: list[str] = Field(
        description="Ids and groups of the request that this version of the catalogue lacks."
    )
    invalid_items: int = Field(description="Fragments of semantic IDs that are no item: always 0.")
    titles: dict[str, str] = Field(
        description="Titles of the ids in named, already_named and exclude."
    )
    catalogue_version: str
    timings: Timings
    usage: Usage
    warnings: list[str] = Field(description="What of the request had no effect, and why.")


class ProblemDetails(BaseModel):
    """An error (RFC 9457, application/problem+json). `error` repeats it as OpenAI's clients read
    errors."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    field: str | None = None
    error: dict[str, Any]


class Health(BaseModel):
    status: str
