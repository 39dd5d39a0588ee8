"""What every request passes before the application reads it: host, token, size of its body."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, MutableHeaders

from .limits import Limits
from .problems import Problem

OPEN = ("/", "/health", "/ready")  # readable without a token, as is everything under /page/
CHANGE_FACTOR = 32  # a change of the catalogue may be so many times as long and slow as a turn
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, slots=True)
class Access:
    """Who may use the server.

    token: the bearer token of every request; None lets everyone in.
    admin_token: the one that changing the catalogue needs; None means `token`.
    changes: whether the catalogue may be changed over HTTP at all.
    hosts: the names under which the server may be called (the Host header without its port); empty
        allows every name. With a list, a page elsewhere cannot reach a server on this machine by a
        host name of its own (DNS rebinding).
    """

    token: str | None = None
    admin_token: str | None = None
    changes: bool = True
    hosts: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("token", "admin_token"):
            value = getattr(self, name)
            if value is not None and (not value.isascii() or not value.strip()):
                raise ValueError(f"Access: {name} must be ASCII text that is not empty")


class Guard:
    """ASGI middleware. It answers what may not come in with problem details, hands the others on
    with their whole body, and adds the security headers to every answer."""

    def __init__(self, app: Any, access: Access, limits: Limits) -> None:
        self.app, self.access, self.limits = app, access, limits

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope)
            body = await self._body(scope, receive)
        except Problem as problem:
            return await problem.response()(scope, receive, send_with_headers)
        if body is None:  # the client went away while it was sending
            return None
        await self.app(scope, _Replay(body, receive), send_with_headers)

    def _check(self, scope: Any) -> None:
        headers, path, access = Headers(scope=scope), scope["path"], self.access
        host = _without_port(headers.get("host", ""))
        if access.hosts and host not in access.hosts:
            raise Problem(421, "this server is not called by that host name", code="wrong_host")
        if path in OPEN or path.startswith("/page/"):
            return
        changes = _is_change(scope)
        if changes and not access.changes:
            raise Problem(
                403,
                "the catalogue cannot be changed over HTTP: the server was started without a token "
                "on an address that others reach",
                code="changes_off",
            )
        expected = (changes and access.admin_token) or access.token
        # Compared as bytes: compare_digest refuses text that is not ASCII.
        given = headers.get("authorization", "").encode()
        if expected and not hmac.compare_digest(given, f"Bearer {expected}".encode()):
            raise Problem(
                401,
                "the header Authorization must be 'Bearer ' and the server's token",
                code="unauthorized",
                headers={"WWW-Authenticate": "Bearer"},
            )
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        # Other types reach a server from pages of other sites, without their asking first.
        if scope["method"] == "POST" and kind != "application/json":
            raise Problem(415, "the Content-Type must be application/json", code="not_json_type")

    async def _body(self, scope: Any, receive: Any) -> bytes | None:
        """The request's whole body; None if the client went away before its end."""
        factor = CHANGE_FACTOR if _is_change(scope) else 1
        most, seconds = self.limits.max_body_bytes * factor, self.limits.body_seconds * factor
        too_long = Problem(413, f"the body must have at most {most} bytes", code="body_too_long")
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > most:
            raise too_long
        parts, size = [], 0
        try:
            async with asyncio.timeout(seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part = message.get("body", b"")
                    size += len(part)
                    if size > most:
                        raise too_long
                    parts.append(part)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise Problem(
                408, f"the body must arrive within {seconds:g} seconds", code="body_too_slow"
            ) from None


class _Replay:
    """An ASGI `receive` that gives the body once, then what the server says (a disconnect)."""

    def __init__(self, body: bytes, receive: Any) -> None:
        self.body: bytes | None = body
        self.receive = receive

    async def __call__(self) -> Any:
        if self.body is None:
            return await self.receive()
        body, self.body = self.body, None
        return {"type": "http.request", "body": body, "more_body": False}


def _is_change(scope: Any) -> bool:
    """Whether the request changes the catalogue."""
    return scope["path"].startswith("/catalogue") and scope["method"] not in ("GET", "HEAD")


def _without_port(host: str) -> str:
    """`[::1]:8000` and `localhost:8000` without the port, in lower case."""
    host = host.lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
