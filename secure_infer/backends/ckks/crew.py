"""Shares the work of one step among processes, for engines that hold the interpreter's lock.

Children are forked when a step begins, so they share the encoded weights, keys and ciphertexts that exist; each returns
what it made through a file in memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Generic

from secure_infer.backends.ckks.engine import C
from secure_infer.errors import Problem, ProtocolError

_LENGTH = 8


class Crew(Generic[C]):
    """Processes that work on one step together.

    Args:
        processes: How many, this one included.
        dump: Writes a ciphertext.
        load: Reads what `dump` wrote.

    Attributes:
        processes: How many.
        cpu_s: Seconds of CPU that the children have used.
    """

    def __init__(self, processes: int, dump: Callable[[C], bytes], load: Callable[[bytes], C]) -> None:
        self.processes, self._dump, self._load = processes, dump, load
        self.cpu_s = 0.0

    def share(self, work: Callable[[range], Iterable[C]], count: int) -> list[C]:
        """What `work` makes of the numbers `0 .. count - 1`, each process taking a range of them.

        Raises:
            ProtocolError: A process ended before it was done.
        """
        starts = [count * number // self.processes for number in range(self.processes + 1)]
        children = [self._start(work, range(*starts[i : i + 2])) for i in range(1, self.processes)]
        try:
            result = list(work(range(*starts[:2])))
        except BaseException:
            for child, descriptor in children:
                os.waitpid(child, 0)
                os.close(descriptor)
            raise
        for number, (child, descriptor) in enumerate(children, start=1):
            result += self._finish(child, descriptor, starts[number + 1] - starts[number])
        return result

    def _start(self, work: Callable[[range], Iterable[C]], numbers: range) -> tuple[int, int]:
        """A child's number, and the file that it writes to."""
        descriptor = os.memfd_create("ckks-blocks")
        child = os.fork()
        if child:
            return child, descriptor
        failed = 1
        with suppress(BaseException):  # nothing of the parent's may run on in a child
            with os.fdopen(descriptor, "wb") as file:
                for made in work(numbers):
                    data = self._dump(made)
                    file.write(len(data).to_bytes(_LENGTH, "little") + data)
            failed = 0
        os._exit(failed)

    def _finish(self, child: int, descriptor: int, count: int) -> list[C]:
        _, status, usage = os.wait4(child, 0)
        self.cpu_s += usage.ru_utime + usage.ru_stime
        with os.fdopen(descriptor, "rb") as file:
            file.seek(0)
            lengths: Any = iter(lambda: int.from_bytes(file.read(_LENGTH), "little"), 0)
            result = [self._load(file.read(length)) for length in lengths]
        if status or len(result) != count:
            raise ProtocolError(
                "The request could not be run.",
                [Problem("worker", "A process that shared the work ended early.", "send the request again.")],
            )
        return result
