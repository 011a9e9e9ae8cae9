"""`secure-infer serve`: bundles behind HTTP."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from secure_infer.cli import console
from secure_infer.errors import missing_extra


def serve(
    *,
    bundles: Annotated[list[str], typer.Argument(help="Bundles, NAME=BUNDLE, or folders of *.bundle files.")],
    store: Annotated[Path, typer.Option(help="Folder for accounts, uploaded keys, counts and the audit log.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any that is free.", min=0, max=65535)] = 8443,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file of the server's certificate chain.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of its key.")] = None,
    client_ca: Annotated[Path | None, typer.Option(help="Ask for client certificates signed by these (PEM).")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Permit plain HTTP to other machines.")] = False,
    open: Annotated[bool, typer.Option("--open", help="Let requests without a token in; loopback only.")] = False,
    workers: Annotated[int, typer.Option(help="Processes; one for each core if 0.", min=0)] = 0,
    threads: Annotated[int, typer.Option(help="Threads of a worker for one request.", min=1)] = 1,
    queue: Annotated[int, typer.Option(help="Requests that may wait for a worker.", min=1)] = 256,
    samples: Annotated[int, typer.Option(help="Most inputs of one request.", min=1)] = 64,
    timeout: Annotated[float, typer.Option(help="Seconds that a request may take, waiting included.", min=1)] = 900.0,
    drain: Annotated[int, typer.Option(help="Seconds for requests under way when asked to stop.", min=0)] = 30,
    database: Annotated[str | None, typer.Option(help="postgresql://...; SQLite in the store if absent.")] = None,
    json: console.Json = False,
) -> None:
    """Serve bundles until SIGTERM or Ctrl-C. Without --open, clients need a token: see `secure-infer token`."""
    try:
        from secure_infer.serve.app import Front, Options
        from secure_infer.serve.catalog import Catalog
        from secure_infer.serve.pool import Pool
        from secure_infer.serve.server import Listen, Server
        from secure_infer.serve.state import State
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("secure_infer"):
            raise
        raise missing_extra("secure-infer serve", "serve", error.name) from error
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    listen = Listen(host, port, tls_cert, tls_key, client_ca, insecure, drain)
    listen.check(anonymous=open)
    catalog = Catalog.load(bundles)
    with State.open(store, database) as state:
        pool = Pool(catalog.paths(), workers, queue, threads=threads)
        options = Options(open=open, samples=samples, seconds=timeout)
        server = Server(Front(catalog, state, pool, options, pool.start), listen)
        names = {model.name: model.interface.protocol for model in catalog.offered()}
        asks = {"token": not open, "client_certificate": client_ca is not None}
        server.run(lambda: _announce(server.url, names, asks, json))


def _announce(url: str, models: dict[str, str], asks: dict[str, bool], as_json: bool) -> None:
    """Say that the server is ready, at once, for whoever waits for it."""
    if as_json:
        document: dict[str, Any] = {"url": url, "models": models, "requires": asks}
        console.emit(document)
    else:
        console.say(f"serving at {url}")
        for name, protocol in models.items():
            console.say(f"  {name}  {protocol}")
        wanted = [name.replace("_", " ") for name, asked in asks.items() if asked]
        console.say(f"clients need: {' and a '.join(['a ' + wanted[0], *wanted[1:]]) if wanted else 'nothing'}")
    sys.stdout.flush()
