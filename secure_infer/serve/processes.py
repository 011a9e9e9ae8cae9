"""The process that workers are forked from, and the handle that the front has on it.

It loads every model once - CKKS encodes its weights, TFHE compiles its circuit, both slow and large - and has no thread
when it forks, so that workers are sound and share all that copy-on-write. It forks again whenever a worker has died. It
never sees a request: those go through a socket of each worker's own, whose other end the front holds.

No thread: numpy's BLAS starts some when it is imported, and concrete would when it compiles, unless the environment
says one thread. Then neither does, and concrete's runtime starts its threads at a worker's first request. (With more,
two were left in the template; its workers ran all the same.) With digits-mlp-bnn under TFHE a worker shares 300 MB with
the template, and has 230 MB of its own with one client's keys; with digits-cnn-poly under CKKS, 85 MB and 90 MB.

Front and template speak in JSON packets over a sequenced-packet socket; a worker's socket travels with the order to
fork it. Whoever dies takes those below along: the template ends when the front's end of the socket closes, and the
kernel kills a worker whose template has died.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from secure_infer import bundle
from secure_infer.backends.base import SoleServer
from secure_infer.errors import Problem, ProtocolError, SecureInferError, UsageError
from secure_infer.serve import worker
from secure_infer.serve.worker_pipe import LIMIT, Closed, pieces, receive_async
from secure_infer.wire import api

_PACKET = 1 << 17
_KILL_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
_ENVIRONMENT = ("PATH", "HOME", "TMPDIR", "LANG", "LC_", "LD_", "PYTHON", "VIRTUAL_ENV")
"""Beginnings of the environment variables that workers get: passwords and tokens of the front are not among them."""
_LOG = logging.getLogger(__name__)


class Channel:
    """The front's end of one worker."""

    def __init__(self, pid: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.pid, self.reader, self.writer = pid, reader, writer

    def send(self, head: Mapping[str, Any], body: bytes = b"") -> None:
        """Send without waiting: at most one request is ever under way."""
        if not self.writer.is_closing():
            self.writer.writelines(pieces(head, body))

    def close(self) -> None:
        """Hang up: an idle worker ends by itself."""
        self.writer.close()


class Template:
    """The template process, as the front sees it.

    Args:
        models: Bundle of each model, by name.
        hot_bytes: Bytes of opened evaluation keys that a worker keeps.
        most_bytes: Memory that a worker may take in all.
        threads: Threads that a worker's libraries may use for one request.
    """

    def __init__(self, models: Mapping[str, Path], hot_bytes: int, most_bytes: int, threads: int) -> None:
        kept = {name: value for name, value in os.environ.items() if name.startswith(_ENVIRONMENT)}
        self._environment = kept | dict.fromkeys(_THREADS, str(threads))
        self._files = {name: _opened(path) for name, path in models.items()}
        self._hot_bytes, self._most_bytes = hot_bytes, most_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._lock = asyncio.Lock()
        self._forked = 0

    @property
    def pid(self) -> int | None:
        """Its process number while it lives."""
        return self._process.pid if self._process and self._process.poll() is None else None

    async def start(self, seconds: float) -> None:
        """Start it, and wait until it has loaded all models.

        Raises:
            SecureInferError: What it met on the way.
        """
        async with self._lock:
            await self._start(seconds)

    async def fork(self, seconds: float) -> Channel:
        """A new worker; a template that has died is started again first.

        Raises:
            ProtocolError: It does not come up in time.
        """
        async with self._lock:
            if self.pid is None:
                await self._start(seconds)
            return await self._fork(seconds)

    def kill(self, channel: Channel) -> None:
        """End a worker in the middle of whatever it does."""
        with contextlib.suppress(ProtocolError):  # without a template there are no workers
            self._tell({"end": channel.pid})

    async def close(self) -> None:
        """End the template, and all workers with it."""
        self._hang_up()
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files = {}

    async def _start(self, seconds: float) -> None:
        self._hang_up()
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mine.setblocking(False)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "secure_infer.serve.processes", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                env=self._environment,
                pass_fds=(theirs.fileno(), *self._files.values()),
                start_new_session=True,
            )
        self._control = mine
        self._tell({"models": self._files, "hot_bytes": self._hot_bytes, "most_bytes": self._most_bytes})
        answer = await self._hear(seconds)
        if "problem" in answer:
            self._hang_up()
            raise api.error_of(answer["problem"], answer["problem"]["status"])

    async def _fork(self, seconds: float) -> Channel:
        mine, theirs = socket.socketpair()
        mine.setblocking(False)
        with theirs:
            self._tell({"fork": True}, theirs)
        reader, writer = await asyncio.open_unix_connection(sock=mine, limit=LIMIT)
        try:
            async with asyncio.timeout(seconds):
                head, _ = await receive_async(reader)
        except BaseException as error:  # the pool may be closed meanwhile, which cancels this
            writer.close()
            if isinstance(error, Closed | TimeoutError):
                raise _not_started() from error
            raise
        self._forked += 1
        return Channel(int(head["pid"]), reader, writer)

    def _tell(self, order: Mapping[str, Any], file: socket.socket | None = None) -> None:
        try:
            if self._control is None:
                raise OSError
            socket.send_fds(self._control, [json.dumps(order).encode()], [file.fileno()] if file else [])
        except OSError as error:
            raise _not_started() from error

    async def _hear(self, seconds: float) -> dict[str, Any]:
        assert self._control is not None
        try:
            async with asyncio.timeout(seconds):
                data = await asyncio.get_running_loop().sock_recv(self._control, _PACKET)
            return dict(json.loads(data))
        except (OSError, TimeoutError, ValueError) as error:
            self._hang_up()
            raise _not_started() from error

    def _hang_up(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._control = self._process = None


def main() -> NoReturn:
    """Body of the template process."""
    control = socket.socket(fileno=int(sys.argv[1]))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the front decides when to end: it drains first
    order = json.loads(control.recv(_PACKET))
    try:
        roles = {name: _role(name, file) for name, file in order["models"].items()}
    except SecureInferError as error:
        control.send(json.dumps({"problem": api.problem(error, api.STATUS.get(type(error), 500))}).encode())
        sys.exit(1)
    gc.collect()
    gc.freeze()  # else a worker's first collection would write to, and so copy, every page of objects
    control.send(b'{"ready": true}')
    _obey(control, lambda connection: worker.serve(connection, roles, order["hot_bytes"], order["most_bytes"]))
    sys.exit(0)


def _obey(control: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    """Fork and kill as told, and bury the dead, until the front hangs up."""
    children: dict[int, int] = {}  # process number -> file descriptor that becomes readable when it ends
    while True:
        ready, _, _ = select.select([control.fileno(), *children.values()], [], [])
        for pid, descriptor in list(children.items()):
            if descriptor in ready:
                os.waitpid(pid, 0)
                os.close(children.pop(pid))
        if control.fileno() not in ready:
            continue
        data, files, _, _ = socket.recv_fds(control, _PACKET, 1)
        if not data:
            break
        order = json.loads(data)
        if order.get("end") in children:
            os.kill(order["end"], signal.SIGKILL)
        if files:
            pid = _fork(control, files[0], list(children.values()), serve)
            children[pid] = os.pidfd_open(pid)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _fork(control: socket.socket, file: int, others: list[int], serve: Callable[[socket.socket], None]) -> int:
    parent, pid = os.getpid(), os.fork()
    if pid:
        os.close(file)
        return pid
    try:
        ctypes.CDLL(None).prctl(_KILL_WITH_PARENT, signal.SIGKILL)
        if os.getppid() == parent:
            control.close()
            for descriptor in others:
                os.close(descriptor)
            serve(socket.socket(fileno=file))
    finally:
        os._exit(0)


def _role(name: str, file: int) -> SoleServer:
    """The one server party of a bundle, from an open file: neither a deletion nor a newer version changes it."""
    _, interface, program = bundle.load(Path(f"/proc/self/fd/{file}"))
    return worker.sole_role(name, interface.protocol, worker.sole_half(name, program))


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UsageError(
            f"Can't read {path}.", [Problem(str(path), f"{error.strerror}.", "give the path of a bundle.")]
        ) from error


def _not_started() -> ProtocolError:
    return ProtocolError(
        "The server has no worker for this.",
        [Problem("worker", "Its process did not come up.", "send the request again; see the server's log.")],
    )


if __name__ == "__main__":
    main()
