"""Errors as the client sees them: problem details (RFC 9457), never a stack trace."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from crs_fast._text import well_formed

logger = logging.getLogger(__name__)


class Problem(HTTPException):
    """An error with a status, one sentence that says what is wrong, and a code for programs.

    Args:
        status: the HTTP status.
        detail: what is wrong, for people.
        code: what is wrong, for programs; it never changes its meaning.
        field: the field of the request at fault, if it is one.
        retry_after: seconds after which the client may try again.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        code: str,
        field: str | None = None,
        retry_after: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        waits = {} if retry_after is None else {"Retry-After": str(retry_after)}
        super().__init__(status, well_formed(detail), {**(headers or {}), **waits})
        self.code, self.field = code, field

    def body(self) -> dict[str, Any]:
        """The members of the problem details. `error` repeats them as OpenAI's clients read
        errors."""
        kind = "server_error" if self.status_code >= 500 else "invalid_request_error"
        return {
            "type": "about:blank",
            "title": HTTPStatus(self.status_code).phrase,
            "status": self.status_code,
            "detail": self.detail,
            "code": self.code,
            **({} if self.field is None else {"field": self.field}),
            "error": {
                "message": self.detail,
                "type": kind,
                "param": self.field,
                "code": self.code,
            },
        }

    def response(self) -> Response:
        return Response(
            json.dumps(self.body()),
            self.status_code,
            self.headers,
            media_type="application/problem+json",
        )


NOT_JSON = Problem(400, "the body could not be read as JSON", code="not_json")


def from_validation(errors: Sequence[Any]) -> Problem:
    """The first of pydantic's errors as a problem. The input is not repeated: it may be long, and
    it may be what no JSON can hold."""
    first = errors[0]
    path = [well_formed(str(part)) for part in first["loc"] if part != "body"]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        return NOT_JSON
    if first["type"] == "string_unicode":
        message = "must be text that UTF-8 can hold (got a lone surrogate)"
    field = ".".join(path)[:200] or None
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return Problem(422, f"{field or 'body'}: {message}{more}", code="invalid", field=field)


def install(app: FastAPI) -> None:
    """Let every error of the application leave it as problem details."""

    async def problem(request: Request, error: Any) -> Response:
        return error.response()

    async def http_error(request: Request, error: Any) -> Response:
        if error.status_code == 400:  # not UTF-8, or nested too deeply
            return NOT_JSON.response()
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "error")
        return Problem(error.status_code, str(error.detail), code, headers=error.headers).response()

    async def invalid(request: Request, error: Any) -> Response:
        return from_validation(error.errors()).response()

    async def unexpected(request: Request, error: Any) -> Response:
        return internal().response()  # the server's log gets the trace

    app.add_exception_handler(Problem, problem)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, unexpected)


def internal() -> Problem:
    """What a client learns of an error that is ours."""
    return Problem(500, "the server failed to answer; its log says why", code="internal")
