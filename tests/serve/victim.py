"""A server's bookkeeping, busy until it is killed: `python -m tests.serve.victim STORE SEED [URL]`.

It says on standard output what it has brought to an end, one line each, after it did: `admitted ID`, `settled ID`,
`key NAME`. Whoever kills it at any moment may hold it to that.
"""

from __future__ import annotations

import os
import random
import sys
import threading

from secure_infer.errors import SecureInferError
from secure_infer.serve.keyfiles import Quotas
from secure_infer.serve.state import State
from tests.serve.stores import account, sha256

CLIENT, MODEL = "ann", "digits"
KEYS = 64
KEY_BYTES = 300_000


def reply_to(request: str) -> bytes:
    """What the server answers to a request."""
    return request.encode() * 50


def key_of(number: int) -> bytes:
    """A client's evaluation keys."""
    return random.Random(number).randbytes(KEY_BYTES + number)


def ask(state: State, chance: random.Random) -> None:
    """Requests, some of which fail or find no worker."""
    while True:
        request = f"{chance.getrandbits(128):032x}"
        admission = state.budgets.admit(account(CLIENT), MODEL, "", request, sha256(request.encode()), 9)
        say("admitted", request)
        fate = chance.random()
        if fate < 0.8:
            state.budgets.settle(admission, reply_to(request), 0.5)
            say("settled", request)
        elif fate < 0.9:
            state.budgets.settle(admission, SecureInferError("It failed."), 0.25)


def upload(state: State, chance: random.Random) -> None:
    """Keys in parts of any size, each upload going on where the last one stopped."""
    while True:
        data = key_of(chance.randrange(KEYS))
        name, total = sha256(data), len(data)
        start = (state.keys.offset(CLIENT, name) or (0, total))[0]
        end = min(total, start + chance.randrange(1, total))
        parts = (data[at : min(at + 10_000, end)] for at in range(start, end, 10_000))
        if state.keys.append(CLIENT, name, start, total, parts) == total:
            say("key", name)
            if chance.random() < 0.3:
                say("delete", name)
                state.keys.delete(CLIENT, name)


def say(word: str, name: str) -> None:
    """One write a line, so that no kill leaves half of one."""
    os.write(1, f"{word} {name}\n".encode())


def main(store: str, seed: str, url: str | None = None) -> None:
    """Work until killed."""
    state = State.open(store, url, Quotas(client_bytes=4_000_000, total_bytes=5_000_000))
    chance = random.Random(int(seed))
    works = [ask, ask, upload, upload]
    for work in works:
        threading.Thread(target=work, args=(state, random.Random(chance.random()))).start()
    say("ready", "-")


if __name__ == "__main__":
    main(*sys.argv[1:])
