"""The HTTP application: recommendation turns in JSON, as server-sent events, and a chat page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import JSONResponse, Response

from crs_fast._version import __version__

from .catalogue import CatalogueStore
from .engine import Engine
from .http import catalogue, openai, problems
from .http.calls import Server, TurnCall
from .http.guard import Access, Guard
from .http.limits import Limits
from .http.problems import Problem
from .http.prometheus import CONTENT_TYPE, Meters
from .http.schemas import Health, ProblemDetails, RespondAnswer, RespondRequest
from .http.sse import respond_events, stream

DESCRIPTION = "Conversational recommendation: intent, items and reply of the next turn."
PAGE = {"page.css": "text/css", "page.js": "text/javascript"}
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ProblemDetails, "description": "The request is at fault."},
    "5XX": {"model": ProblemDetails, "description": "Busy (503), too slow (504), or our fault."},
}


def create_app(
    engine: Engine,
    *,
    store: CatalogueStore | None = None,
    name: str = "crs_fast",
    access: Access | None = None,
    limits: Limits | None = None,
) -> FastAPI:
    """The application of one engine, for any ASGI server. It closes the engine when it ends.

    Args:
        engine: answers the turns.
        store: the catalogue's versions; without one there are no routes for the catalogue.
        name: the model's name for OpenAI's clients.
        access: who may use it; by default everyone.
        limits: what one request may ask for.
    """
    limits = limits or Limits()
    server = Server(engine, limits, Meters(engine), name)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    app = FastAPI(
        title="crs_fast",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,  # these two pages load scripts from other servers
        redoc_url=None,
        lifespan=lifespan,
        responses=ERRORS,
    )
    app.add_middleware(Guard, access=access or Access(), limits=limits)
    problems.install(app)
    app.include_router(_turns(server))
    app.include_router(openai.router(server))
    if store is not None:
        app.include_router(catalogue.router(store))
    app.include_router(_operation(server))
    app.include_router(_page())
    return app


def _turns(server: Server) -> APIRouter:
    routes = APIRouter(tags=["Turns"])

    @routes.post("/v1/respond", response_model=RespondAnswer)
    async def respond(request: Request, body: RespondRequest) -> Response:
        """The next turn. With `stream` it comes as server-sent events: `ranked` as soon as intent
        and items are known, `text` for each piece of the reply, `done` with the whole answer, or
        `error` with problem details."""
        turn = TurnCall(server, body)
        await turn.start()
        if body.stream:
            return await stream(request, turn, lambda events: respond_events(turn, events))
        return JSONResponse(turn.answer(await turn.finish(request)).model_dump())

    return routes


def _operation(server: Server) -> APIRouter:
    routes = APIRouter(tags=["Operation"])

    @routes.get("/health")
    async def health() -> Health:
        """The process works: status 503 if its engine has failed, and only a restart helps."""
        if server.engine.is_closed:
            raise Problem(503, "the engine has ended", code="ending")
        return Health(status="ok")

    @routes.get("/ready")
    async def ready() -> Health:
        """The server takes requests: status 503 while its queue is full, or if it has ended."""
        await health()
        figures: dict[str, Any] = server.engine.metrics
        if figures["queue_length"] >= server.engine.max_queue:
            raise Problem(503, "the queue is full", code="busy", retry_after=1)
        return Health(status="ok")

    @routes.get("/metrics")
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(server.meters.text(), media_type=CONTENT_TYPE)

    return routes


def _page() -> APIRouter:
    """The chat page; its files are read once."""
    routes = APIRouter(include_in_schema=False)
    folder = files("crs_fast.serve") / "page"
    contents = {name: (folder / name).read_bytes() for name in ("page.html", *PAGE)}

    @routes.get("/")
    async def page() -> Response:
        return Response(contents["page.html"], media_type="text/html")

    @routes.get("/page/{name}")
    async def file(name: str) -> Response:
        if name not in PAGE:
            raise Problem(404, "there is no such file", code="not_found")
        return Response(contents[name], media_type=PAGE[name])

    return routes
