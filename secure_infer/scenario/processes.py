"""The processes of a run: each role in a folder of its own, announced by one line of JSON, and always ended."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

from secure_infer.errors import Problem, ProtocolError
from secure_infer.wire.access import TOKEN_VARIABLE

START_SECONDS = 300.0
_END_SECONDS = 10.0
_LOG = "log"


class Role:
    """One process, in a folder that holds all it has.

    Args:
        name: For people.
        folder: Its own.
        words: Arguments of `secure-infer`, whose `--json` prints one line when the role is ready.
        module: What is run instead of the command line.
    """

    def __init__(self, name: str, folder: Path, words: Sequence[object], module: str = "secure_infer.cli") -> None:
        self.name, self.folder, self._log = name, folder, folder.parent / f"{folder.name}.{_LOG}"
        environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, words)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                cwd=folder,
                start_new_session=True,  # an interrupt at the terminal is ours to pass on
            )

    def announced(self, deadline: float) -> dict[str, Any]:
        """The line that the role prints when it is ready, or when it is done.

        Raises:
            ProtocolError: It ended, or says nothing in time.
        """
        pipe, line = self._output(), b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise self._failed("is not ready in time")
            piece = os.read(pipe.fileno(), 1 << 20)
            if not piece:
                self.process.wait()
                raise self._failed(f"ended with code {self.process.returncode}", line)
            line += piece
        try:
            found: dict[str, Any] = json.loads(line)
        except ValueError as error:
            raise self._failed("says something that is no JSON", line) from error
        if "error" in found:
            raise self._failed("failed", line)
        return found

    def readable(self, seconds: float) -> bool:
        """Whether it says something within so many seconds."""
        return bool(select.select([self._output()], [], [], seconds)[0])

    def check(self) -> None:
        """Make sure that it still runs.

        Raises:
            ProtocolError: It does not.
        """
        if self.process.poll() is not None:
            raise self._failed(f"ended with code {self.process.returncode}")

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Send a signal to the process and whatever it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    def _output(self) -> IO[bytes]:
        return cast(IO[bytes], self.process.stdout)

    def _failed(self, what: str, said: bytes = b"") -> ProtocolError:
        """The error, with what the process said of it."""
        problems = []
        with contextlib.suppress(ValueError, KeyError, TypeError):
            told = json.loads(said)["error"]
            problems = [Problem(p["where"], p["what"], p["fix"]) for p in told["problems"]]
            what = f"{what}: {told['summary']}"
        with contextlib.suppress(OSError):
            lines = self._log.read_bytes()[-4000:].decode(errors="replace").strip().splitlines()
            problems += [Problem(self.name, line[:300], "see what it says.") for line in lines[-2:]]
        return ProtocolError(f"The {self.name} {what}.", problems or [Problem(self.name, f"It {what}.", "try again.")])


class Roles:
    """All processes of a run, which end with the block, however that ends."""

    def __init__(self) -> None:
        self._roles: list[Role] = []
        self._lock, self._over = threading.Lock(), False

    def start(self, name: str, folder: Path, *words: object, module: str = "secure_infer.cli") -> Role:
        """Start one."""
        with self._lock:
            if self._over:
                raise ProtocolError("The run is over.", [Problem(name, "It was to start then.", "start again.")])
            role = Role(name, folder, words, module)
            self._roles.append(role)
            return role

    def numbers(self, folder: Path) -> dict[str, int]:
        """Numbers of the processes whose folders are below `folder`, by role."""
        return {role.name: role.process.pid for role in self._roles if folder in role.folder.parents}

    def check(self, but: Role | None = None) -> None:
        """Make sure that all still run, but for one that may end."""
        for role in self._roles:
            if role is not but:
                role.check()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._lock:
            self._over = True
        for role in reversed(self._roles):
            role.stop()
        deadline = time.monotonic() + _END_SECONDS
        for role in self._roles:
            with contextlib.suppress(subprocess.TimeoutExpired):
                role.process.wait(max(0.1, deadline - time.monotonic()))
            role.stop(signal.SIGKILL)
            role.process.wait()
            if role.process.stdout is not None:
                role.process.stdout.close()
