"""Shares the blocks of one step among processes, for engines that hold the interpreter's lock.

Children are forked when a step begins, so they share the encoded weights and ciphertexts that exist; each returns its
blocks through a file in memory. A block costs a write and a read of a ciphertext to return, so only steps with many
products for each block are shared: those of a batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic

from secure_infer.backends.ckks.engine import C
from secure_infer.errors import Problem, ProtocolError

_LEAST_PRODUCTS = 100
_LENGTH = 8


class Crew(Generic[C]):
    """Processes that work on one step together.

    Args:
        processes: How many, this one included.
        dump: Writes a ciphertext.
        load: Reads what `dump` wrote.

    Attributes:
        cpu_s: Seconds of CPU that the children have used.
    """

    def __init__(self, processes: int, dump: Callable[[C], bytes], load: Callable[[bytes], C]) -> None:
        self._processes, self._dump, self._load = processes, dump, load
        self.cpu_s = 0.0

    def pays(self, products: float, level: int) -> bool:
        """Whether sharing a step of so many products for each block, at a level, is worth the way back."""
        return self._processes > 1 and products >= _LEAST_PRODUCTS and level > 0

    def share(self, work: Callable[[int], C], count: int) -> list[C]:
        """`work` of `0 .. count - 1`.

        Raises:
            ProtocolError: A process ended before it was done.
        """
        starts = [count * number // self._processes for number in range(self._processes + 1)]
        children = [self._start(work, range(*starts[i : i + 2])) for i in range(1, self._processes)]
        try:
            result = [work(block) for block in range(*starts[:2])]
        except BaseException:
            for child, descriptor in children:
                os.waitpid(child, 0)
                os.close(descriptor)
            raise
        for number, (child, descriptor) in enumerate(children, start=1):
            result += self._finish(child, descriptor, starts[number + 1] - starts[number])
        return result

    def _start(self, work: Callable[[int], C], blocks: range) -> tuple[int, int]:
        """A child's number, and the file that it writes to."""
        descriptor = os.memfd_create("ckks-blocks")
        child = os.fork()
        if child:
            return child, descriptor
        failed = 1
        with suppress(BaseException):  # nothing of the parent's may run on in a child
            with os.fdopen(descriptor, "wb") as file:
                for block in blocks:
                    data = self._dump(work(block))
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
