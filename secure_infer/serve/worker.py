"""One worker process: runs one request after another, and keeps the evaluation keys that were used last opened.

Only here does a crypto library see bytes that a client sent. A crash takes this process along and no other.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from secure_infer import backends
from secure_infer.backends.base import OpenedKeys, Program, SoleServer
from secure_infer.errors import KeyMismatch, Problem, ProtocolError, SecureInferError, UsageError
from secure_infer.serve import worker_pipe as pipe
from secure_infer.wire import api

_LOG = logging.getLogger(__name__)


class HotKeyCache:
    """Opened evaluation keys, by model and name; those not used for longest go when there are too many bytes.

    Args:
        limit: Bytes; a single key set may take more, and is then the only one.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._keys: OrderedDict[tuple[str, str], OpenedKeys] = OrderedDict()

    @property
    def bytes(self) -> int:
        """Memory that all keys take."""
        return sum(keys.size for keys in self._keys.values())

    def names(self) -> list[str]:
        """Names of the keys."""
        return sorted({name for _, name in self._keys})

    def get(self, model: str, name: str) -> OpenedKeys | None:
        """Keys that are here, now the ones used last."""
        if (model, name) in self._keys:
            self._keys.move_to_end((model, name))
        return self._keys.get((model, name))

    def put(self, model: str, name: str, keys: OpenedKeys) -> None:
        """Keep keys, in place of older ones."""
        self._keys[model, name] = keys
        while self.bytes > self._limit and len(self._keys) > 1:
            self._keys.popitem(last=False)

    def opened(self, order: Mapping[str, Any], role: SoleServer) -> OpenedKeys:
        """The keys that an order names: those that are here, or else from their file.

        Raises:
            KeyMismatch: The file is gone, or holds keys of another model.
            BundleError: They are damaged.
        """
        model, name = order["model"], order["key_name"]
        keys = self.get(model, name) or role.open(read_keys(order["key_file"]))
        self.put(model, name, keys)
        return keys

    def forget(self, name: str) -> None:
        """Drop keys of this name."""
        for entry in [entry for entry in self._keys if entry[1] == name]:
            del self._keys[entry]


def serve(connection: socket.socket, roles: Mapping[str, SoleServer], hot_bytes: int, most_bytes: int) -> None:
    """Answer requests until the front hangs up, with at most so many bytes of keys, and of memory in all."""
    _lower_rank(most_bytes)
    for role in roles.values():
        if hasattr(role, "processes"):
            role.processes = 1  # the other processors have workers of their own
    cache = HotKeyCache(hot_bytes)
    with contextlib.suppress(pipe.Closed, OSError):
        pipe.send(connection, {"pid": os.getpid()})
        while True:
            order, message = pipe.receive(connection)
            if "forget" in order:
                cache.forget(order["forget"])
                continue
            head, reply = answer(roles[order["model"]], message, partial(cache.opened, order))
            pipe.send(connection, {**head, "hot": cache.names(), "hot_bytes": cache.bytes}, reply)
            if head.get("broken"):
                break


def answer(
    role: SoleServer, message: bytes, opened: Callable[[SoleServer], OpenedKeys]
) -> tuple[dict[str, Any], bytes]:
    """Head and body of the reply: times, or what was wrong and whether the worker is to be replaced.

    Args:
        role: Answers.
        message: One frame.
        opened: Gives the opened evaluation keys.
    """
    start, cpu = time.perf_counter(), time.process_time()
    try:
        keys = opened(role)
        loaded = time.perf_counter()
        reply = role.answer(message, keys)
    except SecureInferError as error:
        return {"problem": api.problem(error, api.STATUS.get(type(error), 500))}, b""
    except Exception as error:
        _LOG.exception("A request failed in a way that nobody foresaw; its worker is replaced.")
        failed = ProtocolError(
            "The request could not be run.",
            [Problem("worker", f"It met {type(error).__name__}.", "send it again; if it fails again, make it anew.")],
        )
        return {"problem": api.problem(failed, 503), "broken": True}, b""
    times = {"load_s": loaded - start, "run_s": time.perf_counter() - loaded, "cpu_s": time.process_time() - cpu}
    return {**times, "statistics": dict(getattr(role, "statistics", {}))}, reply


def sole_half(name: str, program: Program) -> bytes:
    """The server half of a program that has one server party.

    Raises:
        UsageError: It has several.
    """
    if len(program.servers) != 1:
        problem = Problem(name, f"Its protocol has {len(program.servers)} parties.", "start a front for each party.")
        raise UsageError(f"{name} can't be served by workers.", [problem])
    return program.servers[0]


def sole_role(name: str, protocol: str, half: bytes) -> SoleServer:
    """The party that runs such a half."""
    (role,) = backends.load(protocol).servers([half])
    if not isinstance(role, SoleServer):
        raise TypeError(f"the backend {protocol} of {name} lacks open() and answer()")
    return role


def read_keys(path: str | None) -> bytes:
    """Evaluation keys as they were uploaded; nothing where there are none.

    Raises:
        KeyMismatch: They are gone.
    """
    try:
        return Path(path).read_bytes() if path else b""
    except OSError as error:
        raise KeyMismatch(
            "The server no longer holds these evaluation keys.",
            [Problem("evaluation keys", f"They can't be read: {error.strerror}.", "upload them again.")],
        ) from error


def _lower_rank(most_bytes: int) -> None:
    """Bound the memory; let the kernel end a worker before the front if none is left; write no keys to a core file."""
    resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
