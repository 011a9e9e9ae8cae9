"""A process that runs circuits outlives connections that break."""

import re
import signal
import socket
from pathlib import Path

import numpy as np
import pytest

from secure_infer.backends.tfhe import TfheBackend
from secure_infer.graph import Graph, Linear, Node, Sign, TensorType


def _ignored(number: int) -> bool:
    mask = re.search(r"SigIgn:\s*(\w+)", Path("/proc/self/status").read_text())
    assert mask is not None
    return bool(int(mask[1], 16) >> (number - 1) & 1)


def test_a_lost_connection_is_an_exception_after_a_circuit_has_run():
    eye, backend = np.eye(4, dtype=np.int64), TfheBackend()
    nodes = (Node("sum", Linear(eye, eye[0]), ("input",)), Node("sign", Sign(np.full(4, 2)), ("sum",)))
    x = np.random.default_rng(0).integers(0, 4, (50, 4))
    program = backend.compile(Graph(TensorType((4,), 0, 3), nodes, "sign"), x, {})
    client, (server,) = backend.client(program.client), backend.servers(program.servers)
    keys = client.keygen()
    (message,) = client.encrypt(x[:1], keys)
    server.run(message, keys.evaluation)
    assert _ignored(signal.SIGPIPE)
    here, there = socket.socketpair()
    there.close()
    with here, pytest.raises(BrokenPipeError):
        here.sendall(b"anybody?")
