"""The client: makes and keeps keys, encrypts, asks, decrypts. Secrets stay here."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from secure_infer import backends, bundle, files
from secure_infer.backends.base import Keys, Values
from secure_infer.errors import BundleError, DecryptionError, KeyMismatch, Problem, UsageError
from secure_infer.graph.types import Integers
from secure_infer.wire import frame
from secure_infer.wire.access import Access
from secure_infer.wire.http import Http
from secure_infer.wire.talk import Progress
from secure_infer.wire.transport import Answer, InProcess, Transport

SECRET, EVALUATION = "secret-key", "evaluation-keys"


@dataclass(frozen=True, eq=False)
class Prediction:
    """The outputs of one request, and what it took.

    Attributes:
        outputs: Reals, shape `(n, *output shape)`, as the network itself would give them.
        values: The same in units of the output's scale.
        wall_s: Seconds by phase: encrypt, run, decrypt; over a network upload (of keys that the server had lost),
            queue, load, run and transfer in between.
        cpu_s: Seconds of CPU by phase; `run` counts every party.
        bytes: Bytes of the messages to and from all servers: input, output.
        statistics: What the parties counted (rounds, bytes between them), where the protocol has such counts.
    """

    outputs: npt.NDArray[np.float64]
    values: Values
    wall_s: Mapping[str, float]
    cpu_s: Mapping[str, float]
    bytes: Mapping[str, int]
    statistics: Mapping[str, float]


@dataclass
class Stopwatch:
    """Wall and CPU seconds by phase."""

    wall_s: dict[str, float] = field(default_factory=dict)
    cpu_s: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block as one phase."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall_s[name] = time.perf_counter() - wall
        self.cpu_s[name] = time.process_time() - cpu


class ClientSide:
    """What a client does by itself, whatever the way to its servers: keys, encryption, decryption.

    Args:
        data: The model's public half.
        key_cache: Folder in which keys are kept between runs; None keeps them in memory only.
    """

    def __init__(self, data: bytes, key_cache: str | Path | None = None) -> None:
        self.interface, self._half = bundle.unpack_client_half(data)
        self._role = backends.load(self.interface.protocol).client(self._half)
        self._cache = Path(key_cache) if key_cache is not None else None
        self._keys: Keys | None = None
        self._key_name = ""
        self._lock = threading.RLock()
        self.stopwatch = Stopwatch()

    def _made(self) -> Keys:
        """Keys from the cache, or new ones; not uploaded yet."""
        return self._fresh() if self._cache is None else self._cached(self._cache / key_set(self._half)[:32])

    def _fresh(self) -> Keys:
        with self.stopwatch.phase("keygen"):
            return self._role.keygen()

    def _cached(self, folder: Path) -> Keys:
        """The keys in a folder; made there if it does not hold both. Both files there are always of one pair."""
        paths = folder / SECRET, folder / EVALUATION
        if not all(path.exists() for path in paths):
            with files.locked(folder):
                if not all(path.exists() for path in paths):
                    keys = self._fresh()
                    write_keys(keys, *paths, self._half)
                    return keys
        return read_keys(*paths, self._half)

    def _encrypt(self, units: Integers, keys: Keys, watch: Stopwatch) -> tuple[bytes, ...]:
        with self._lock, watch.phase("encrypt"):
            return self._role.encrypt(units, keys)

    def _decrypt(
        self, messages: Sequence[bytes], answer: Answer, keys: Keys, watch: Stopwatch, count: int
    ) -> Prediction:
        with self._lock, watch.phase("decrypt"):
            values = self._role.decrypt(answer.replies, keys)
        if len(values) != count:
            raise DecryptionError(
                "The reply answers another request.",
                [Problem("reply", f"It holds {len(values)} outputs for {count} inputs.", "send the request again.")],
            )
        traffic = {"input": sum(map(len, messages)), "output": sum(map(len, answer.replies))}
        served = answer.phases or {"run": answer.wall_s}
        wall = {"encrypt": watch.wall_s["encrypt"], **served, "decrypt": watch.wall_s["decrypt"]}
        cpu = {"encrypt": watch.cpu_s["encrypt"], "run": answer.cpu_s, "decrypt": watch.cpu_s["decrypt"]}
        return Prediction(self.interface.dequantize(values), values, wall, cpu, traffic, answer.statistics)


class Client(ClientSide):
    """Encrypted prediction with one model. Threads may share it.

    Args:
        transport: The way to the servers.
        key_cache: Folder in which keys are kept between runs (files of mode 0600); None keeps them in memory only.
    """

    def __init__(self, transport: Transport, key_cache: str | Path | None = None) -> None:
        self._transport = transport
        super().__init__(transport.client_half(), key_cache)

    @classmethod
    def connect(
        cls,
        address: str | Path | Sequence[str],
        *,
        key_cache: str | Path | None = None,
        model: str = "",
        progress: Progress | None = None,
        **access: Any,
    ) -> Client:
        """A client of a model on a server; or of the bundle at a path, whose servers it starts on this machine.

        Args:
            address: `https://host:port`, the addresses of all parties in order, or the path of a bundle.
            key_cache: Folder in which keys are kept between runs; None keeps them in memory only.
            model: Name under which the server has it; may be left out if it has only one.
            progress: Called with (bytes, total bytes) while evaluation keys are uploaded.
            access: `token`, `ca`, `certificate`, `timeout`, `retries`, `patience`: see `wire.access.Access`.

        Raises:
            UsageError: An absent file, an unknown model, or addresses that can't be used.
            AccessDenied: No valid token; or one that would travel in the clear.
            ProtocolError: The server can't be reached.
        """
        urls = addresses(address)
        if urls:
            transport = Http(urls, model, Access.of(access), progress)
            try:
                return cls(transport, key_cache)
            except BaseException:
                transport.close()
                raise
        if model or access:
            raise UsageError(
                "A bundle on this machine takes no such arguments.",
                [Problem(name, "It is for servers.", "leave it out, or give a URL.") for name in ("model", *access)],
            )
        _, interface, program = bundle.load(str(address))
        parties = backends.load(interface.protocol).servers(program.servers)
        return cls(InProcess(bundle.pack_client_half(interface, program.client), parties), key_cache)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the servers."""
        self._transport.close()

    def predict(self, x: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """The network's outputs for a batch of reals `x`, shape `(n, *input shape)`, computed on ciphertexts."""
        return self.infer(x).outputs

    def infer(self, x: npt.ArrayLike) -> Prediction:
        """Like `predict`, with time by phase and traffic.

        Raises:
            InvalidInput: Wrong shape or type, NaN, or outside the calibrated range; nothing is sent.
            DecryptionError: The reply does not decrypt.
            AccessDenied, LimitExceeded: The server does not permit it, or not now.
            ProtocolError: A server failed.
        """
        units = self.interface.quantize(x)
        keys, watch = self.keys(), Stopwatch()
        messages = self._encrypt(units, keys, watch)
        answer = self._transport.infer(messages, self._key_name)
        return self._decrypt(messages, answer, keys, watch, len(units))

    def keys(self) -> Keys:
        """This client's keys: made (or read from the cache) and uploaded on first use."""
        with self._lock:
            if self._keys is None:
                keys = self._made()
                with self.stopwatch.phase("upload"):
                    self._key_name = self._transport.upload(keys.evaluation)
                self._keys = keys
            return self._keys


def addresses(address: str | Path | Sequence[str]) -> list[str]:
    """The URLs that an address consists of; none if it is a path."""
    if isinstance(address, (str, Path)):
        return [str(address)] if "://" in str(address) else []
    return [str(url) for url in address]


def key_set(half: bytes) -> str:
    """Name of the key set that a client half calls for: keys serve every model whose half calls for the same.

    A half may name it in its header; else it is the SHA-256 of the half.
    """
    try:
        named = frame.unpack(half, None).meta.get("key_set")
    except BundleError:
        named = None
    known = isinstance(named, str) and len(named) == 64 and set(named) <= set("0123456789abcdef")
    return str(named) if known else hashlib.sha256(half).hexdigest()


def write_keys(keys: Keys, secret: str | Path, evaluation: str | Path, half: bytes) -> None:
    """Write both keys; the secret one readable by its owner only."""
    meta = {"key_set": key_set(half)}
    files.write(secret, frame.pack(SECRET, [keys.secret], meta), mode=files.PRIVATE)
    files.write(evaluation, frame.pack(EVALUATION, [keys.evaluation], meta))


def read_keys(secret: str | Path | None, evaluation: str | Path | None, half: bytes) -> Keys:
    """Read the keys that `write_keys` wrote; None stands for a key that is not needed here.

    Raises:
        KeyMismatch: Keys of another model.
        BundleError: A file that is no key or is damaged.
    """
    return Keys(_read_key(secret, SECRET, half), _read_key(evaluation, EVALUATION, half))


def _read_key(path: str | Path | None, kind: str, half: bytes) -> bytes:
    if path is None:
        return b""
    received = frame.unpack(files.read(path), kind)
    if received.meta.get("key_set") != key_set(half):
        raise KeyMismatch(
            "These keys belong to another model.",
            [
                Problem(
                    str(path),
                    "Its key set is not the one that this model calls for.",
                    "give this model's keys, or make new ones with `secure-infer keygen`.",
                )
            ],
        )
    if len(received.parts) != 1:
        raise BundleError(f"{path} does not hold one key.")
    return received.parts[0]
