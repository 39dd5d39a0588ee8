"""`/v1/chat/completions` and `/v1/models` as OpenAI's clients use them.

The turn's intent, items and figures stand under one extra member, `crs_fast`. In requests the
member of the same name holds what `/v1/respond` takes beside the messages.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from crs_fast._text import well_formed

from ..requests import Done, Ranked, Text, TurnAnswer
from .calls import Server, TurnCall
from .problems import Problem
from .schemas import Message, Options, RespondAnswer, RespondRequest, Utf8
from .sse import stream

# Members that change what an answer means: refused rather than left out without a word.
UNSUPPORTED = {
    "n": 1,
    "tools": [],
    "functions": [],
    "logprobs": False,
    "stop": [],
    "logit_bias": {},
    "response_format": {"type": "text"},
    "modalities": ["text"],
}
SILENT = {"user", "metadata", "store", "safety_identifier", "service_tier"}  # concern no answer


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    """A chat completion. `temperature` above 0 samples; without one the reply is greedy."""

    model_config = ConfigDict(
        extra="allow",
        allow_inf_nan=False,
        json_schema_extra={
            "examples": [
                {
                    "model": "model",
                    "messages": [{"role": "user", "content": "I liked The Matrix, any more?"}],
                    "crs_fast": {"mode": "rec", "num_items": 5},
                }
            ]
        },
    )

    model: Utf8
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=10)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    crs_fast: Options = Options()

    def unread(self) -> list[str]:
        """A warning for each member without effect.

        Raises:
            Problem: a member is not supported and would change the answer.
        """
        extra = self.model_extra or {}
        for name, harmless in UNSUPPORTED.items():
            if extra.get(name) not in (None, harmless):
                raise Problem(422, f"{name} is not supported", code="unsupported", field=name[:200])
        names = [name for name in extra if name not in UNSUPPORTED and name not in SILENT]
        return [
            f"{well_formed(name[:100])} has no effect"
            for name in names[:20]
            if extra[name] is not None
        ]

    def respond_request(self) -> RespondRequest:
        """The same turn as `/v1/respond` takes it."""
        return RespondRequest(
            messages=self.messages,
            max_new_tokens=self.max_completion_tokens or self.max_tokens or 64,
            do_sample=bool(self.temperature),
            temperature=self.temperature or 1.0,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            **self.crs_fast.model_dump(),
        )


class ChatMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    index: int = 0
    message: ChatMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class ChatUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]


class ChatCompletion(BaseModel):
    """A chat completion with what `/v1/respond` answers under `crs_fast`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: ChatUsage
    crs_fast: RespondAnswer


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "crs_fast"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


def router(server: Server) -> APIRouter:
    """The two routes for one server."""
    routes = APIRouter(tags=["OpenAI"])
    card = ModelCard(id=server.name, created=int(time.time()))

    @routes.get("/v1/models")
    async def models() -> ModelList:
        return ModelList(data=[card])

    @routes.post("/v1/chat/completions", response_model=ChatCompletion)
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        if body.model != server.name:
            raise Problem(
                404, f"model must be {server.name!r}", code="model_not_found", field="model"
            )
        turn = TurnCall(server, body.respond_request(), body.unread())
        await turn.start()
        chunks = _Chunks(server, turn, body)
        if body.stream:
            return await stream(request, turn, chunks.write)
        answer = await turn.finish(request)
        return JSONResponse(chunks.completion(answer))

    return routes


class _Chunks:
    """One completion's JSON, whole or as the chunks of a stream."""

    def __init__(self, server: Server, turn: TurnCall, body: ChatRequest) -> None:
        self.turn = turn
        self.head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": server.name,
        }
        self.with_usage = body.stream_options is not None and body.stream_options.include_usage

    def completion(self, answer: TurnAnswer) -> dict[str, Any]:
        return {
            **self.head,
            "object": "chat.completion",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": answer.text},
                    "finish_reason": self._reason(answer),
                    "logprobs": None,
                }
            ],
            "usage": self._usage(answer),
            "crs_fast": self.turn.answer(answer).model_dump(),
        }

    def _reason(self, answer: TurnAnswer) -> str:
        written = answer.usage["completion_tokens"]
        return "length" if written >= self.turn.body.max_new_tokens else "stop"

    def _usage(self, answer: TurnAnswer) -> dict[str, Any]:
        usage = answer.usage
        prompt, written = usage["prompt_tokens"], usage["completion_tokens"]
        return {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
            "prompt_tokens_details": {"cached_tokens": usage["cached_tokens"]},
        }

    async def write(self, events: AsyncIterator[Any]) -> AsyncIterator[str]:
        """The chunks as server-sent events. The first one has the items."""
        async for event in events:
            if isinstance(event, Ranked):
                ranking = self.turn.ranking(event)
                yield self._chunk({"role": "assistant", "content": ""}, crs_fast=ranking)
            elif isinstance(event, Text):
                yield self._chunk({"content": event.delta})
            elif isinstance(event, Done):
                answer = event.answer
                extra = self.turn.answer(answer).model_dump()
                yield self._chunk({}, self._reason(answer), crs_fast=extra)
                if self.with_usage:
                    yield _data({**self._chunk_head(), "choices": [], "usage": self._usage(answer)})
        yield "data: [DONE]\n\n"

    def _chunk_head(self) -> dict[str, Any]:
        return {**self.head, "object": "chat.completion.chunk"}

    def _chunk(self, delta: dict[str, Any], reason: str | None = None, **extra: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return _data({**self._chunk_head(), "choices": [choice], **extra})


def _data(content: Any) -> str:
    return f"data: {json.dumps(content)}\n\n"
