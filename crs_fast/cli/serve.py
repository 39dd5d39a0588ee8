"""`crs-fast serve`: the HTTP server with its chat page."""

from __future__ import annotations

import argparse
import ipaddress
import os
from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import above_zero, model_arguments
from .inputs import device_of, dtype_of, read_model

if TYPE_CHECKING:
    from crs_fast.serve.http.guard import Access
    from crs_fast.serve.http.limits import Limits

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


def add(commands: Any) -> None:
    parser = commands.add_parser("serve", help="serve a trained recommender over HTTP")
    parser.add_argument("--model", default="crs_fast_quickstart/model", help="a model directory")
    parser.add_argument("--name", help="the model's name for clients (default: its directory's)")
    model_arguments(parser)
    parser.add_argument(
        "--catalogue", metavar="DIR", help="where catalogue versions survive a restart"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="0 takes any free port")
    parser.add_argument(
        "--replicas",
        type=_whole,
        metavar="N",
        help="serve N copies of the model with Ray Serve, on this machine or on the Ray cluster "
        "that it belongs to; they share --catalogue",
    )
    _access_arguments(parser.add_argument_group("who may use it (docs/serving.md)"))
    _engine_arguments(parser.add_argument_group("load"))
    _limit_arguments(parser.add_argument_group("limits of one request"))
    parser.set_defaults(run=run)


def _access_arguments(group: Any) -> None:
    group.add_argument(
        "--token",
        help="bearer token of every request (default: $CRS_FAST_TOKEN, which others on the machine "
        "cannot see)",
    )
    group.add_argument(
        "--admin-token",
        help="the token that changes the catalogue (default: $CRS_FAST_ADMIN_TOKEN, else --token)",
    )
    group.add_argument("--open", action="store_true", help="other machines need no token")
    group.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a host name under which clients call the server, as behind a proxy; may be repeated",
    )


def _engine_arguments(group: Any) -> None:
    group.add_argument(
        "--max-batch-tokens", type=_whole, help="tokens of one forward pass, with padding"
    )
    group.add_argument(
        "--max-chunk", type=_whole, help="tokens read between two tokens of the replies in progress"
    )
    group.add_argument("--max-wait", type=above_zero, help="seconds that a batch waits for more")
    group.add_argument("--max-queue", type=_whole, help="turns that wait before 503")
    group.add_argument("--max-running", type=_whole, help="replies written at a time")
    group.add_argument("--cache-gib", type=above_zero, help="memory for past conversations")
    group.add_argument(
        "--cuda-graphs",
        action="store_true",
        default=None,
        help="on a GPU, record the steps of the replies in CUDA graphs",
    )
    group.add_argument(
        "--max-connections", type=_whole, default=1000, help="connections before 503"
    )


def _limit_arguments(group: Any) -> None:
    for name, kind, text in (
        ("max-body-bytes", _whole, "bytes of a body"),
        ("max-messages", _whole, "messages of a conversation"),
        ("max-characters", _whole, "characters of all messages"),
        ("max-beams", _whole, "beams"),
        ("max-items", _whole, "items"),
        ("max-new-tokens", _whole, "tokens of a reply"),
        ("max-ids", _whole, "ids to exclude and allow"),
        ("max-seconds", above_zero, "seconds until 504"),
    ):
        group.add_argument(f"--{name}", type=kind, help=text)


def _whole(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1 (got {text})")
    return value


def run(args: Namespace) -> int:
    """Serve until interrupted; turns in progress are finished first."""
    if args.replicas is not None:
        return _run_replicas(args)
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ImportError(
            f"needs {error.name}: pip install fastapi uvicorn prometheus-client", name=error.name
        ) from error
    from crs_fast.serve.app import create_app
    from crs_fast.serve.catalogue import CatalogueStore
    from crs_fast.serve.engine import Engine

    access, limits = access_of(args), limits_of(args)
    store = CatalogueStore(
        read_model(args),
        args.catalogue,
        on_swap=lambda new: engine.swap(new.recommender, new.version),
    )
    current = store.current
    engine = Engine(current.recommender, version=current.version, **_engine_options(args))
    name = args.name or Path(args.model).resolve().name
    app = create_app(engine, store=store, name=name, access=access, limits=limits)
    uvicorn.run(
        app,
        host=args.host,
        port=args.port,
        log_level="info",
        access_log=False,  # conversations are nobody's business; /metrics counts the requests
        server_header=False,
        limit_concurrency=args.max_connections,
        timeout_graceful_shutdown=int(limits.max_seconds) + 1,
    )
    return 0


def _run_replicas(args: Namespace) -> int:
    """Serve with Ray until interrupted."""
    if args.port == 0:
        raise ValueError("serve: --port must be above 0 with --replicas (got 0)")
    access, limits = access_of(args), limits_of(args)
    try:
        from ray import serve

        from crs_fast.serve.replicas import application
    except ImportError as error:
        raise ImportError(
            f"needs {error.name}: pip install 'ray[serve,data]'", name=error.name
        ) from error
    from crs_fast.crs.hub import local_folder

    app = application(
        local_folder(args.model, None),
        catalogue=args.catalogue,
        name=args.name or Path(args.model).resolve().name,
        device=device_of(args),
        dtype=dtype_of(args),
        join=args.join,
        access=access,
        limits=limits,
        engine=_engine_options(args),
        num_replicas=args.replicas,
        trust_remote_code=args.trust_remote_code,
    )
    serve.start(http_options={"host": args.host, "port": args.port})
    try:
        serve.run(app, blocking=True)
    except RuntimeError as error:  # a replica could not be made
        raise ValueError(f"serve: {error}") from error
    return 0


def access_of(args: Namespace) -> Access:
    """Who may use the server.

    Raises:
        ValueError: other machines could use it without a token, and nobody said `--open`.
    """
    from crs_fast.serve.http.guard import Access

    token = args.token or os.environ.get("CRS_FAST_TOKEN")
    admin = args.admin_token or os.environ.get("CRS_FAST_ADMIN_TOKEN")
    if _is_loopback(args.host):
        return Access(token, admin, hosts=(*LOOPBACK_NAMES, args.host, *args.allowed_host))
    if token is None and not args.open:
        raise ValueError(
            "--host must be a loopback address unless --token or --open is given "
            f"(got {args.host!r})"
        )
    return Access(token, admin, changes=bool(token or admin), hosts=args.allowed_host)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def limits_of(args: Namespace) -> Limits:
    """The limits that the arguments name; the others keep their defaults."""
    from crs_fast.serve.http.limits import Limits

    given = {field.name: getattr(args, field.name, None) for field in fields(Limits)}
    return Limits(**{name: value for name, value in given.items() if value is not None})


def _engine_options(args: Namespace) -> dict[str, Any]:
    names = ("max_batch_tokens", "max_chunk", "max_wait", "max_queue", "max_running", "cuda_graphs")
    given = {name: getattr(args, name) for name in names}
    given["cache_bytes"] = None if args.cache_gib is None else int(args.cache_gib * 2**30)
    return {name: value for name, value in given.items() if value is not None}
