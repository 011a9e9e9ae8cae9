"""One process of a session, and the two pipes through which the process that started it drives it."""

from __future__ import annotations

import contextlib
import os
import select
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any, cast

from secure_infer import errors
from secure_infer.backends.parties.process import ANSWER, COMMAND, FAILURE
from secure_infer.errors import Problem, ProtocolError
from secure_infer.wire import frame
from secure_infer.wire.frame import Frame

START_SECONDS = 120.0
GRACE_SECONDS = 0.5


class Worker:
    """One process, and the two pipes it is driven through.

    Args:
        name: "party 0", "party 1" or "dealer".
        threads: Threads that its libraries may use.
        module: What is run.
    """

    def __init__(self, name: str, threads: int, module: str) -> None:
        self.name = name
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            start_new_session=True,
        )
        self._commands, self._answers = cast(IO[bytes], self.process.stdin), cast(IO[bytes], self.process.stdout)
        os.set_blocking(self._commands.fileno(), False)

    def send(
        self,
        verb: str,
        meta: Mapping[str, Any] | None = None,
        parts: Sequence[bytes] = (),
        seconds: float = START_SECONDS,
    ) -> None:
        """Send a command.

        Raises:
            ProtocolError: The process is gone, or does not take the command in time.
        """
        self.pass_on(frame.pack(COMMAND, parts, {"verb": verb, **(meta or {})}), seconds)

    def pass_on(self, data: bytes, seconds: float = START_SECONDS) -> None:
        """Send a frame as it is: a command, or a share to be run.

        Raises:
            ProtocolError: See `send`.
        """
        view, deadline = memoryview(struct.pack("<Q", len(data)) + data), time.monotonic() + seconds
        try:
            while view:
                self._wait(self._commands, select.POLLOUT, deadline)
                view = view[os.write(self._commands.fileno(), view) :]
        except (OSError, ValueError) as error:
            raise self.gone() from error

    def receive(self, seconds: float) -> Frame:
        """The answer to a command.

        Raises:
            ProtocolError: The process is gone, or does not answer in time.
            SecureInferError: What it met.
        """
        deadline = time.monotonic() + seconds
        (length,) = struct.unpack("<Q", self._read(8, deadline))
        data = self._read(length, deadline)
        with contextlib.suppress(errors.BundleError):
            return frame.unpack(data, ANSWER)
        meta = frame.unpack(data, FAILURE).meta
        raise getattr(errors, meta["type"], ProtocolError)(meta["summary"], [Problem(*p) for p in meta["problems"]])

    def end(self) -> None:
        """End the process and wait for it, so that no zombie stays."""
        with contextlib.suppress(OSError):
            self.process.kill()
        self.process.wait()
        for pipe in (self._commands, self._answers, self._errors):
            with contextlib.suppress(OSError):
                pipe.close()

    def _read(self, count: int, deadline: float) -> bytes:
        pieces = []
        try:
            while count:
                self._wait(self._answers, select.POLLIN, deadline)
                piece = os.read(self._answers.fileno(), min(count, 1 << 20))
                if not piece:
                    raise self.gone()
                pieces.append(piece)
                count -= len(piece)
        except (OSError, ValueError) as error:
            raise self.gone() from error
        return b"".join(pieces)

    def _wait(self, pipe: IO[bytes], event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        if not poll.poll(max(0.0, 1000 * (deadline - time.monotonic()))):
            self.process.kill()  # a late answer must not be taken for the answer to a later command
            raise ProtocolError(
                f"The {self.name} does not answer.",
                [Problem(self.name, "It took longer than its time limit.", "compile with a longer timeout.")],
            )

    def gone(self) -> ProtocolError:
        """The error for a process that has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE_SECONDS)
        return ProtocolError(
            f"The {self.name} is gone.",
            [
                Problem(
                    self.name,
                    f"Its process ended with code {self.process.returncode}. {self._last_words()}".strip(),
                    "start the servers again.",
                )
            ],
        )

    def _last_words(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            self._errors.seek(0)
            lines = self._errors.read()[-2000:].decode(errors="replace").strip().splitlines()
            return lines[-1] if lines else ""
        return ""
