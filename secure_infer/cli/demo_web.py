"""The demo as a local page: draw a digit and see what the client keeps, what travels, and what the servers saw."""

from __future__ import annotations

import base64
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from importlib.resources import files as resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_infer import backends, bundle
from secure_infer.cli import console
from secure_infer.cli.demo_run import choose_model, held_out_digits
from secure_infer.cli.run_scenario import compile_to
from secure_infer.client import Client
from secure_infer.errors import InvalidInput, Problem, ProtocolError, SecureInferError, missing_extra
from secure_infer.graph.graph import Graph
from secure_infer.graph.interpret import interpret, interpret_real

HOST = "127.0.0.1"
_SAMPLES, _SHOWN = 12, 1024
_SIDE, _LONGEST = 8, 1 << 14
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass
class Stage:
    """One protocol of the page: its servers, its client, and how far they are.

    Attributes:
        protocol: Name of the protocol.
        model: Name of the zoo model.
        phase: "waiting", what is going on, "ready" or "failed".
        facts: What the page shows of it once it is ready.
    """

    protocol: str
    model: str = ""
    phase: str = "waiting"
    facts: dict[str, Any] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    client: Client | None = None
    recorder: Any = None
    graph: Graph | None = None

    def as_dict(self) -> dict[str, Any]:
        """What the page is told."""
        return {"protocol": self.protocol, "model": self.model, "phase": self.phase, **self.facts}


class Show:
    """All protocols of the page, made ready one after another by a thread; ended by `close`."""

    def __init__(self, protocols: Sequence[str]) -> None:
        self.stages = {name: Stage(name) for name in protocols}
        self.samples = [
            {"label": digit.label, "pixels": digit.pixels.reshape(-1).tolist()} for digit in held_out_digits(_SAMPLES)
        ]
        self._stack = ExitStack()
        self._folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="secure-infer-demo-")))
        from secure_infer.scenario.processes import Roles

        self._roles = self._stack.enter_context(Roles())
        threading.Thread(target=self._prepare, name="prepare", daemon=True).start()

    def predict(self, protocol: str, pixels: Sequence[float]) -> dict[str, Any]:
        """Ask the servers of one protocol about a drawing.

        Raises:
            InvalidInput: Not 64 numbers from 0 to 1.
            ProtocolError: The protocol is not ready, or a server failed.
        """
        image, stage = _image(pixels), self.stages.get(protocol)
        if stage is None or stage.phase != "ready" or stage.client is None or stage.graph is None:
            raise ProtocolError("This protocol is not ready.", [Problem(protocol, "It is being set up.", "wait.")])
        with stage.lock:
            stage.recorder.messages.clear()
            found = stage.client.infer(image)
            messages = [_message(each) for each in stage.recorder.messages]
        evaluate = interpret if backends.load(protocol).exact else interpret_real
        clear = stage.graph.dequantize(evaluate(stage.graph, stage.graph.quantize(image)))
        return {
            "scores": found.outputs[0].tolist(),
            "predicted": int(found.outputs.argmax()),
            "clear": int(clear.argmax()),
            "wall_s": dict(found.wall_s),
            "statistics": dict(found.statistics),
            "messages": messages,
            "sent_pixels": stage.graph.quantize(image).reshape(-1).tolist(),
        }

    def close(self) -> None:
        """Stop all servers."""
        self._stack.close()

    def _prepare(self) -> None:
        for stage in self.stages.values():
            try:
                self._ready(stage)
                stage.phase = "ready"
            except SecureInferError as error:
                stage.facts = {"error": str(error)}
                stage.phase = "failed"

    def _ready(self, stage: Stage) -> None:
        from secure_infer.scenario import servers
        from secure_infer.scenario.witness import Recorder
        from secure_infer.wire.access import Access
        from secure_infer.wire.http import Http

        stage.model, folder = choose_model(stage.protocol), self._folder / stage.protocol
        folder.mkdir()
        stage.phase = "compiling the network"
        path = folder / "model.bundle"
        compile_to(path, stage.model, stage.protocol)
        stage.graph, interface, program = bundle.load(path)
        stage.phase = "starting the servers"
        served = servers.start(self._roles, folder, path, len(program.servers))
        stage.phase = "making and uploading keys"
        access = Access(",".join(served.tokens), served.ca)
        stage.recorder = Recorder(Http(list(served.urls), servers.MODEL, access), served.names)
        stage.client = Client(stage.recorder)
        keys = stage.client.keys()
        stage.facts = {
            "once": [_message(each) for each in stage.recorder.messages],
            "keys": {"secret": len(keys.secret), "evaluation": len(keys.evaluation)},
            "keygen_s": stage.client.stopwatch.wall_s.get("keygen", 0.0),
            "servers": [{"name": name, "url": url} for name, url in zip(served.names, served.urls, strict=True)],
            "processes": self._roles.numbers(folder),
            "counts": dict(program.counts),
            "guarantee": interface.guarantee.as_dict(),
        }


def serve(protocols: Sequence[str], port: int) -> None:
    """Show the page until Ctrl-C; it is for this machine alone.

    Raises:
        MissingExtra: A library of the extra `serve` is not installed.
        UsageError: The port can't be had.
    """
    try:
        import uvicorn

        from secure_infer.serve.server import Listen
    except ModuleNotFoundError as error:
        raise missing_extra("secure-infer demo --web", "serve", error.name or "uvicorn") from error
    listen = Listen(HOST, port)
    bound = listen.bind()
    with console.ended_by_sigterm(), closing(Show(protocols)) as show:
        config = uvicorn.Config(
            application(show), log_config=None, access_log=False, server_header=False, lifespan="off"
        )
        console.say(f"demo at {listen.url(bound)}/ (Ctrl-C ends it and its servers)")
        sys.stdout.flush()
        uvicorn.Server(config).run(sockets=[bound])


def application(show: Show) -> Any:
    """The page, its state, and one question; nothing of another site may ask."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse, Response
    from starlette.routing import Route

    page = resources("secure_infer.cli").joinpath("demo_web.html").read_text(encoding="utf-8")

    async def index(request: Request) -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": _POLICY, "Cache-Control": "no-store"})

    async def state(request: Request) -> Response:
        stages = [stage.as_dict() for stage in show.stages.values()]
        return JSONResponse({"pid": os.getpid(), "stages": stages, "samples": show.samples})

    async def predict(request: Request) -> Response:
        if request.headers.get("origin") != f"http://{request.headers.get('host')}":
            return JSONResponse({"error": "Only this page may ask."}, 403)
        if int(request.headers.get("content-length", _LONGEST)) >= _LONGEST:
            return JSONResponse({"error": "The question is too long."}, 413)
        try:
            asked = await request.json()
            return JSONResponse(await run_in_threadpool(show.predict, str(asked["protocol"]), asked["pixels"]))
        except SecureInferError as error:
            return JSONResponse({"error": str(error)}, 422)
        except (ValueError, KeyError, TypeError, RecursionError):
            return JSONResponse({"error": "The question is malformed."}, 400)

    routes = [Route("/", index), Route("/state", state), Route("/predict", predict, methods=["POST"])]
    # A name of another site that resolves to this machine must not reach the page.
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])])


def _image(pixels: Any) -> npt.NDArray[np.float32]:
    try:
        image = np.asarray(pixels, dtype=np.float32).reshape(1, 1, _SIDE, _SIDE)
    except (TypeError, ValueError, OverflowError):
        image = np.full((1, 1, _SIDE, _SIDE), np.nan, dtype=np.float32)
    if not bool(np.isfinite(image).all()) or image.min() < 0 or image.max() > 1:
        problem = Problem("pixels", "Expected 64 numbers from 0 to 1.", "draw on the page.")
        raise InvalidInput("This is no drawing.", [problem])
    return image


def _message(message: Any) -> dict[str, Any]:
    """A message as the page shows it: its first bytes behind the frame's own header."""
    data = message.data
    start = 40 + int.from_bytes(data[36:40], "little") if message.kind else 0
    body = data[start : start + _SHOWN]
    return {**message.as_dict(), "shown_from": start, "body": base64.b64encode(body).decode()}
