"""Bad input, silent parties and kills: everybody left gets a clear error in time, and nothing hangs."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from secure_infer.backends.mpc.backend import unpack_halves
from secure_infer.backends.parties.messages import Share, unpack
from secure_infer.errors import BundleError, KeyMismatch, ProtocolError
from secure_infer.graph import QuantRelu, TensorType, interpret
from secure_infer.wire import frame
from tests.strategies import inputs_for

pytest.importorskip("crypten")

from secure_infer.backends.parties.session import PartyRole, Session
from tests.backends.mpc_networks import BACKEND, CASES, TINY, alone, compiled, failures_of_all, run_all


def test_refused_messages_leave_the_parties_usable(session: Session) -> None:
    program, other = compiled(TINY), compiled(TINY)
    session.load(unpack_halves(program.servers)[0])
    roles = [PartyRole(session, party) for party in (0, 1)]
    client, stranger = BACKEND.client(program.client), BACKEND.client(other.client)
    good, x = client.encrypt(inputs_for(TINY, 2), client.keygen()), inputs_for(TINY, 2)
    whole = frame.unpack(good[0], "mpc-share")
    for message, error in (
        (stranger.encrypt(x, stranger.keygen())[0], KeyMismatch),
        (good[1], BundleError),
        (b"garbage", BundleError),
        (b"", BundleError),
        (good[0][:-8], BundleError),
        (frame.pack("mpc-share", [whole.parts[0][:-8]], whole.meta), BundleError),
        (frame.pack("mpc-share", [whole.parts[0]], {**whole.meta, "shape": [2, -5]}), BundleError),
        (frame.pack("mpc-share", [whole.parts[0]], {**whole.meta, "shape": [5, 2]}), BundleError),
        (frame.pack("mpc-share", [whole.parts[0]], {**whole.meta, "shape": None}), BundleError),
        (frame.pack("mpc-share", [whole.parts[0]], {**whole.meta, "session": "../../x"}), BundleError),
        (frame.pack("mpc-share", [], whole.meta), BundleError),
    ):
        with pytest.raises(error):
            roles[0].run(message, b"")
    uneven = [
        Share(share.model, share.session, party, share.values[: 2 - party]).pack("mpc-share")
        for party, share in enumerate(
            unpack(m, "mpc-share", whole.meta["model"], party, (5,))
            for party, m in enumerate(client.encrypt(x, client.keygen()))
        )
    ]
    failures = failures_of_all(roles, uneven)
    assert all("share of another shape" in str(failure) for failure in failures)
    assert all("refused its share" in str(failure) for failure in failures_of_all(roles, good))
    y = client.decrypt(run_all(roles, client.encrypt(x, client.keygen())), client.keygen())
    assert np.array_equal(y, interpret(TINY, x))


def test_a_party_that_is_run_alone_gives_up_and_stays_usable() -> None:
    graph = CASES["relu"]
    program = compiled(graph, timeout=3)
    roles = BACKEND.servers(program.servers)
    client, x = BACKEND.client(program.client), inputs_for(graph, 2)
    try:
        for party in (0, 1):
            with pytest.raises(ProtocolError, match=f"party {1 - party} was not given its share within 3 s"):
                roles[party].run(client.encrypt(x, client.keygen())[party], b"")
        messages = client.encrypt(x, client.keygen())
        assert np.array_equal(client.decrypt(run_all(roles, messages), client.keygen()), interpret(graph, x))
        processes = list(roles[0]._session.processes.values())
        os.kill(roles[0]._session.processes["dealer"], signal.SIGKILL)
        failures = failures_of_all(roles, client.encrypt(x, client.keygen()))
        assert all(isinstance(failure, ProtocolError) for failure in failures)
        assert all("dealer" in str(failure) for failure in failures)
    finally:
        roles[1].close()
    assert not any(_alive(process) for process in processes)
    roles[0].close()
    with pytest.raises(ProtocolError, match="closed"):
        roles[0].run(b"", b"")


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.full)])
def test_a_killed_party_is_named(victim: int) -> None:
    program = compiled(TINY)
    roles = BACKEND.servers(program.servers)
    client = BACKEND.client(program.client)
    messages = client.encrypt(inputs_for(TINY, 1), client.keygen())
    try:
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(roles[1 - victim].run, messages[1 - victim], b"")
            time.sleep(0.3)
            started = time.monotonic()
            os.kill(roles[0]._session.processes[f"party {victim}"], signal.SIGKILL)
            with pytest.raises(ProtocolError, match=f"party {victim}"):
                waiting.result(20)
            assert time.monotonic() - started < 10
        with pytest.raises(ProtocolError, match=f"party {victim} is gone"):
            roles[victim].run(messages[victim], b"")
    finally:
        roles[0].close()


LONG = alone(QuantRelu(np.arange(-6, 8, 2)), TensorType((600,), -8, 7))
"""A run of a second or so on 100 samples, most of it in rounds."""


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.full) for seed in range(3, 51))])
def test_a_kill_at_any_moment_is_a_clear_error_in_time(seed: int) -> None:
    """Any of the three processes is killed while queries run: each query ends, right or with a named party."""
    rng = random.Random(seed)
    timeout = 4.0
    program = compiled(LONG, timeout=timeout)
    roles = BACKEND.servers(program.servers)
    client, x = BACKEND.client(program.client), inputs_for(LONG, 100)
    victim = ("party 0", "party 1", "dealer")[seed % 3]
    processes = dict(roles[0]._session.processes)
    try:
        with ThreadPoolExecutor(1) as threads:
            killer = threads.submit(_kill_later, processes[victim], rng.uniform(0, 1.5))
            failures: list[BaseException | None] = []
            while not any(failures):
                started = time.monotonic()
                failures, replies = _asked(roles, client.encrypt(x, client.keygen()))
                assert time.monotonic() - started < 3 * timeout
                if not any(failures):
                    assert np.array_equal(client.decrypt(replies, client.keygen()), interpret(LONG, x))
            killer.result()
        assert all(isinstance(failure, ProtocolError) for failure in failures if failure)
        assert victim in " ".join(map(str, failures))
    finally:
        roles[0].close()
    assert not any(_alive(process) for process in processes.values())


def _kill_later(process: int, seconds: float) -> None:
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)


def _asked(roles: Sequence[PartyRole], messages: Sequence[bytes]) -> tuple[list[BaseException | None], list[bytes]]:
    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(role.run, message, b"") for role, message in zip(roles, messages, strict=True)]
        failures = [future.exception() for future in futures]
    return failures, [] if any(failures) else [future.result() for future in futures]


def _alive(process: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, 0)
        return True
    return False
