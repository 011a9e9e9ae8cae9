"""The server: encodes the weights once, keeps a few clients' evaluation keys, and evaluates; it holds no secret."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise

from secure_infer.backends.ckks.batch import ciphertexts_of
from secure_infer.backends.ckks.client import EVALUATION, INPUT_MESSAGE, OUTPUT_MESSAGE, other_model
from secure_infer.backends.ckks.crew import Crew
from secure_infer.backends.ckks.plan import Plan
from secure_infer.backends.ckks.run import Program
from secure_infer.backends.ckks.seal import Handle, Ring, SealEngine, Unreadable
from secure_infer.cores import usable_cores
from secure_infer.errors import BundleError, KeyMismatch, Problem
from secure_infer.wire import frame

KIND = "ckks-server"
_CLIENTS = 4

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class EvaluationKeys:
    """A client's evaluation keys, loaded.

    Attributes:
        name: Name of the key they belong to.
        relinearization: For products; None if the program has none.
        galois: For exactly the program's rotations; None if it has none.
        size: Bytes of memory that they take.
    """

    name: str
    relinearization: Handle
    galois: Handle
    size: int


class CkksServer:
    """The server role.

    Args:
        plan: The program.
        model: Its name.

    Attributes:
        processes: How many processes may work on one message: all processors, unless a pool of workers has them.

    Raises:
        BundleError: A program that does not fit its own parameters.
    """

    def __init__(self, plan: Plan, model: str) -> None:
        self._plan, self._model = plan, model
        self._ring = Ring(plan.parameters)
        self._engine = SealEngine(self._ring)
        start = time.perf_counter()
        try:
            self._program: Program[Handle, Handle] = Program(self._engine, plan)
        except (ValueError, RuntimeError, LookupError, TypeError, ArithmeticError) as error:
            raise BundleError(
                "The CKKS program can't be encoded.",
                [Problem(KIND, f"{type(error).__name__}: {error}.", "compile the model again.")],
            ) from error
        self.processes = usable_cores()
        log.debug("encoded the weights in %.3f s", time.perf_counter() - start)
        self._keys: OrderedDict[bytes, EvaluationKeys] = OrderedDict()
        self._latest: tuple[bytes, bytes] = (b"", b"")
        self._lock = threading.Lock()
        self._children_s = 0.0

    def cpu_seconds(self) -> float:
        """Seconds of CPU that further processes have used for all messages so far."""
        return self._children_s

    def run(self, message: bytes, evaluation: bytes) -> bytes:
        """Evaluate every sample of a message; raises what `open` and `answer` do. The keys seen last stay open."""
        with self._lock:
            keys = self._loaded(evaluation)
        return self.answer(message, keys)

    def open(self, evaluation: bytes) -> EvaluationKeys:
        """Load evaluation keys.

        Raises:
            BundleError: Keys that are damaged or malformed.
            KeyMismatch: Keys of another model.
        """
        start = time.perf_counter()
        keys = self._load(evaluation)
        log.debug("loaded keys in %.4f s", time.perf_counter() - start)
        return keys

    def answer(self, message: bytes, keys: EvaluationKeys) -> bytes:
        """Evaluate every sample of a message.

        Raises:
            BundleError: A message that is damaged or malformed.
            KeyMismatch: A message of another model, or under another key.
        """
        with self._lock:
            times = [time.perf_counter()]
            inputs, count = self._inputs(message, keys)
            times.append(time.perf_counter())
            self._engine.relinearization, self._engine.galois = keys.relinearization, keys.galois
            load = self._engine.load_frozen if self._plan.batch else self._engine.load
            crew = Crew[Handle](self.processes, self._engine.dump, load)
            self._program.crew = crew
            outputs = [c for blocks in inputs for c in self._program.run(blocks)]
            times.append(time.perf_counter())
            parts = [self._engine.dump(c) for c in outputs]
            times.append(time.perf_counter())
        self._children_s += crew.cpu_s
        log.debug("inputs %.4f s, evaluation %.4f s, outputs %.4f s", *(b - a for a, b in pairwise(times)))
        meta = {"model": self._model, "key": keys.name, "count": count}
        return frame.pack(OUTPUT_MESSAGE, parts, meta)

    def close(self) -> None:
        """Forget all keys."""
        self._keys.clear()
        self._latest = (b"", b"")

    def _loaded(self, evaluation: bytes) -> EvaluationKeys:
        """The keys, from a cache by SHA-256; the object seen last is not even hashed again."""
        known, digest = self._latest
        if evaluation is not known:
            digest = hashlib.sha256(evaluation).digest()
        keys = self._keys.pop(digest, None) or self.open(evaluation)
        self._keys[digest] = keys
        self._latest = (evaluation, digest)
        while len(self._keys) > _CLIENTS:
            self._keys.popitem(last=False)
        return keys

    def _load(self, evaluation: bytes) -> EvaluationKeys:
        opened = frame.unpack(evaluation, EVALUATION)
        if opened.meta.get("model") != self._model:
            raise other_model("evaluation key")
        try:
            relinearization, galois = opened.parts
            return EvaluationKeys(
                str(opened.meta.get("key")),
                self._relinearization(relinearization),
                self._galois(galois),
                self._size(),
            )
        except (Unreadable, ValueError) as error:
            raise BundleError(
                "The evaluation keys can't be used.",
                [Problem("evaluation key", f"Refused: {error}.", "make and upload the keys again.")],
            ) from error

    def _relinearization(self, data: bytes) -> Handle:
        if not self._plan.multiplies:
            return _require_empty(data)
        keys = self._ring.load("RelinKeys", data)
        if keys.size() != 1:
            raise Unreadable("not one relinearization key")
        return keys

    def _size(self) -> int:
        """Each key switches a polynomial prime by prime, with a pair of polynomials modulo all primes for each."""
        keys = len(self._ring.galois_elements(self._plan.rotations())) + bool(self._plan.multiplies)
        parameters = self._plan.parameters
        primes = len(parameters.primes)
        return keys * primes * 2 * (primes + 1) * parameters.poly_modulus_degree * 8

    def _galois(self, data: bytes) -> Handle:
        elements = self._ring.galois_elements(self._plan.rotations())
        if not elements:
            return _require_empty(data)
        keys = self._ring.load("GaloisKeys", data)
        missing = sum(not keys.has_key(element) for element in elements)
        if missing:
            raise Unreadable(f"{missing} of the {len(elements)} Galois keys of this program's rotations are missing")
        if keys.size() != len(elements):
            raise Unreadable("Galois keys that this program has no use for")
        return keys

    def _inputs(self, message: bytes, keys: EvaluationKeys) -> tuple[list[list[Handle]], int]:
        """The blocks of every sample, or of every chunk of a batch; and the number of samples."""
        opened = frame.unpack(message, INPUT_MESSAGE)
        if opened.meta.get("model") != self._model:
            raise other_model("message")
        if opened.meta.get("key") != keys.name:
            raise KeyMismatch(
                "The message was encrypted under another key than the evaluation keys are for.",
                [Problem("message", "Its key's name differs.", "send it with the evaluation keys of the same client.")],
            )
        source, count = self._plan.input, opened.meta.get("count")
        if type(count) is not int or len(opened.parts) != self._groups(count) * source.blocks:
            raise BundleError(
                "The message is malformed.",
                [
                    Problem(
                        "message", f"It holds {len(opened.parts)} ciphertexts for {count} samples.", "encrypt again."
                    )
                ],
            )
        try:
            parts = [self._ring.received(part, source.level, source.scale, self._plan.batch) for part in opened.parts]
        except Unreadable as error:
            raise BundleError(
                "The message can't be evaluated.",
                [Problem("message", f"It holds {error}.", "encrypt with this model's client half.")],
            ) from error
        return [parts[i : i + source.blocks] for i in range(0, len(parts), source.blocks)], count

    def _groups(self, count: int) -> int:
        """How often the program runs for so many samples."""
        return ciphertexts_of(count, self._plan.parameters.poly_modulus_degree) if self._plan.batch else count


def _require_empty(data: bytes) -> None:
    if data:
        raise Unreadable("a key that this program has no use for")
