"""Kill -9 at any moment: nothing that was said to be done is lost, nothing is counted twice, no key is half there."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from secure_infer.serve import checkup
from secure_infer.serve.budgets import Admission
from secure_infer.serve.keyfiles import Quotas
from secure_infer.serve.state import State
from tests.serve import victim
from tests.serve.stores import account, sha256, store, url

__all__ = ["store", "url"]


def killed(store: Path, seed: int, url: str | None) -> list[tuple[str, str]]:
    """What a server said it did until it was killed, some milliseconds after one of its first steps."""
    chance = random.Random(seed)
    command = [sys.executable, "-m", "tests.serve.victim", str(store), str(seed), *([url] if url else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        first = process.stdout.readline()
        assert first, process.stderr.read().decode()
        lines = first + b"".join(process.stdout.readline() for _ in range(chance.randrange(20)))
        time.sleep(chance.uniform(0.0, 0.01))
        process.kill()
        lines += process.stdout.read()
        assert process.wait() == -9, process.stderr.read().decode()  # it was at work until then
    return [(word, name) for word, name in (line.split() for line in lines.decode().splitlines())]


def kills(store: Path, url: str | None, count: int) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    for seed in range(count):
        yield seed, killed(store, seed, url)
        assert checkup.problems(store, url) == [], f"after kill {seed}"


def check(store: Path, url: str | None, said: list[tuple[str, str]]) -> None:
    """Hold the store to what the killed server said, and go on where it stopped."""
    admitted = [name for word, name in said if word == "admitted"]
    settled = [name for word, name in said if word == "settled"]
    deleted = {name for word, name in said if word == "delete"}
    whole = {name for word, name in said if word == "key"} - deleted
    with State.open(store, url, Quotas(client_bytes=4_000_000, total_bytes=5_000_000)) as state:
        before = state.budgets.spent(victim.CLIENT)["day"]
        for request in admitted:
            admission = again(state, request)
            if request in settled:
                assert (admission.kind, admission.reply) == ("replay", victim.reply_to(request))
            elif admission.kind == "new":
                state.budgets.settle(admission, victim.reply_to(request), 0.5)
            assert again(state, request).reply == victim.reply_to(request)
        assert state.budgets.spent(victim.CLIENT)["day"].requests == before.requests  # nothing was charged again
        missing = [name for name in whole if state.keys.offset(victim.CLIENT, name) is None]
        assert not missing or state.keys.status()["key_bytes"] > 3_000_000  # gone only where room was needed
        finish(state)


def again(state: State, request: str) -> Admission:
    return state.budgets.admit(account(victim.CLIENT), victim.MODEL, "", request, sha256(request.encode()), 9)


def finish(state: State) -> None:
    """One upload that was cut off goes on to its end."""
    for number in range(victim.KEYS):
        data = victim.key_of(number)
        name, total = sha256(data), len(data)
        offset, _ = state.keys.offset(victim.CLIENT, name) or (total, total)
        if 0 < offset < total:
            assert state.keys.append(victim.CLIENT, name, offset, total, [data[offset:]]) == total
            with state.keys.hold(victim.CLIENT, name) as path:
                assert path.read_bytes() == data
            return


def test_thirty_kills(store: Path) -> None:
    everything = []
    for _, said in kills(store, None, 30):
        everything += said
        check(store, None, said)
    words = [word for word, _ in everything]
    # Each kind of work was under way often enough for the kills to mean something.
    assert words.count("settled") > 30
    assert words.count("key") > 3


def test_kills_on_postgres(store: Path, url: str | None) -> None:
    if url is None:
        pytest.skip("see the test before")
    for _, said in kills(store, url, 5):
        check(store, url, said)
