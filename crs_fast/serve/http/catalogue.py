"""The catalogue over HTTP: what is served, changes, and the way back to an earlier version."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from .problems import Problem
from .schemas import Utf8

if TYPE_CHECKING:
    from ..catalogue import Catalogue, CatalogueStore


class CatalogueChange(BaseModel):
    """Items to add and to remove. An item in both is an update: its SID stays."""

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra={
            "examples": [{"add": [{"item_id": "m1", "title": "Heat", "year": 1995}], "remove": []}]
        },
    )

    add: list[dict[str, Any]] = Field(
        default=[],
        description="Rows as in items.jsonl: item_id, title, year, and fields such as genres.",
    )
    remove: list[Utf8] = Field(default=[], description="Ids of items to remove.")
    sids: list[list[int]] | None = Field(
        default=None,
        description="The SIDs of the new items; without them the model's quantizer makes them.",
    )
    embeddings: list[list[float]] | None = Field(
        default=None,
        description="One per new item, where the model's text encoder alone did not make its SIDs.",
    )


class Rollback(BaseModel):
    """The version to serve again."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"version": "0"}]})

    version: Utf8


class CatalogueState(BaseModel):
    """The catalogue that new requests are answered from, and the versions that can be served."""

    version: str
    num_items: int
    groups: list[str]
    examples: list[str] = Field(description="Titles of a few items.")
    versions: list[str]


def router(store: CatalogueStore) -> APIRouter:
    """The routes of one store. A change is prepared in a thread beside the running catalogue."""
    routes = APIRouter(prefix="/catalogue", tags=["Catalogue"])

    @routes.get("")
    async def catalogue() -> CatalogueState:
        """What is served now."""
        return _state(store)

    @routes.post("")
    async def change(body: CatalogueChange) -> CatalogueState:
        """Add and remove items: all of the change or nothing of it. Turns in progress end on the
        catalogue that they began with."""
        given = {"sids": body.sids, "embeddings": body.embeddings}
        return await _changed(store, lambda: store.change(body.add, body.remove, **given))

    @routes.post("/rollback")
    async def rollback(body: Rollback) -> CatalogueState:
        """Serve an earlier version again, or a later one."""
        return await _changed(store, lambda: store.rollback(body.version))

    return routes


async def _changed(store: CatalogueStore, change: Callable[[], Catalogue]) -> CatalogueState:
    try:
        await asyncio.to_thread(change)
    except FileNotFoundError as error:
        raise Problem(404, str(error), code="no_version", field="version") from error
    except ValueError as error:
        raise Problem(422, str(error), code="invalid") from error
    return _state(store)


def _state(store: CatalogueStore) -> CatalogueState:
    current = store.current
    items = current.recommender.bundle.items
    return CatalogueState(
        version=current.version,
        num_items=len(items),
        groups=current.recommender.groups.names,
        examples=[item.title for item in items[:: max(len(items) // 3, 1)][:3]],
        versions=store.versions,
    )
