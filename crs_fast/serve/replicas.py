"""The HTTP application as a Ray Serve application: replicas of one model on one or many machines.

app = application("model_directory", catalogue="/shared/catalogue", num_replicas=4)
serve.run(app)                       # or `serve run module:app`, or `import_path` in a config
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ray import serve

from crs_fast.crs.joined_beams import check_share
from crs_fast.crs.recommender import Recommender

from .app import create_app
from .engine import Engine
from .http.guard import Access
from .http.limits import Limits
from .shared_catalogue import SharedCatalogueStore

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

# More than the engine takes at a time by default: it must be the engine, which knows what waits,
# that answers 503, not a queue before it that nobody sees.
_MAX_ONGOING_REQUESTS = 1000


def application(
    model: str | Path,
    *,
    catalogue: str | Path | None = None,
    name: str | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    join: float | None = None,
    access: Access | None = None,
    limits: Limits | None = None,
    engine: dict[str, Any] | None = None,
    poll_seconds: float = 1.0,
    trust_remote_code: bool = False,
    **deployment: Any,
) -> Application:
    """A Ray Serve application whose replicas each hold the model and an engine.

    Args:
        model: a model directory that every machine finds at this path, or a name on the hub.
        catalogue: a folder that all replicas share, in which catalogue versions are kept. A change
            that one replica takes is current there when it is answered, and everywhere
            `poll_seconds` later. None: the catalogue cannot be changed.
        name: the model's name for OpenAI's clients; by default its directory's.
        device: where each replica runs; with "cuda", Ray gives each a GPU of its own.
        dtype: of the weights; by default as saved.
        join: share of the nearest neighbours by text, see `Recommender.with_join`.
        access: who may use it. By default the tokens in each replica's CRS_FAST_TOKEN and
            CRS_FAST_ADMIN_TOKEN; without either, the catalogue cannot be changed over HTTP.
        limits: what one request may ask for.
        engine: further arguments of `Engine`, such as max_running.
        poll_seconds: how often a replica looks for a new version of the catalogue.
        trust_remote_code: run Python files that come with the model, as in `load_bundle`.
        deployment: options of `ray.serve.deployment`: num_replicas, autoscaling_config,
            ray_actor_options, request_router_config, …

    Raises:
        ValueError: an option that `ray.serve.deployment` refuses, poll_seconds is not above 0, or
            join is no number in [0, 1].
    """
    if join is not None:
        check_share(join)  # replicas would fail one by one
    if not poll_seconds > 0:
        raise ValueError(f"application: poll_seconds must be above 0 (got {poll_seconds})")
    limits = limits or Limits()
    actor = {"num_gpus": 1} if torch.device(device).type == "cuda" else {}
    options = {
        "max_ongoing_requests": _MAX_ONGOING_REQUESTS,
        "graceful_shutdown_timeout_s": limits.max_seconds + 1,
        **deployment,
        "ray_actor_options": {**actor, **(deployment.get("ray_actor_options") or {})},
    }
    return serve.deployment(name="crs_fast", **options)(serve.ingress()(Replica)).bind(
        # Replicas run in folders of their own.
        str(Path(model).resolve() if Path(model).exists() else model),
        catalogue=None if catalogue is None else str(Path(catalogue).resolve()),
        name=name or Path(model).resolve().name,
        device=device,
        dtype=dtype,
        join=join,
        access=access,
        limits=limits,
        engine=engine or {},
        poll_seconds=poll_seconds,
        trust_remote_code=trust_remote_code,
    )


class Replica:
    """One copy of the model with its engine; `application` describes the arguments."""

    def __init__(
        self,
        model: str,
        *,
        catalogue: str | None,
        name: str,
        device: str,
        dtype: torch.dtype | None,
        join: float | None,
        access: Access | None,
        limits: Limits,
        engine: dict[str, Any],
        poll_seconds: float,
        trust_remote_code: bool,
    ) -> None:
        self.name, self.limits = name, limits
        self.access = access or _access_of_environment()
        recommender = Recommender.from_pretrained(
            model, dtype=dtype, device=device, trust_remote_code=trust_remote_code
        ).with_join(join)
        self.store = SharedCatalogueStore(
            recommender,
            catalogue,
            on_swap=lambda new: self.engine.swap(new.recommender, new.version),
        )
        current = self.store.current
        self.engine = Engine(current.recommender, version=current.version, **engine)
        self.store.follow(poll_seconds)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray when the replica is made."""
        return create_app(
            self.engine, store=self.store, name=self.name, access=self.access, limits=self.limits
        )

    def check_health(self) -> None:
        """Called by Ray, which makes a new replica if it raises."""
        if self.engine.is_closed:
            raise RuntimeError("the engine has ended")

    def __del__(self) -> None:
        self.store.close()


def _access_of_environment() -> Access:
    token = os.environ.get("CRS_FAST_TOKEN")
    admin = os.environ.get("CRS_FAST_ADMIN_TOKEN")
    return Access(token, admin, changes=bool(token or admin))
