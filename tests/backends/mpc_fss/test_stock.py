"""No correlation is used twice: not after a crash at any moment, nor when the parties lose step."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from secure_infer.backends.mpc_fss.stock import Stock, describe, known_greeting
from secure_infer.errors import BundleError

GREETING = b"g" * 64
ITEM = 4


def stock(folder: Path | None, greeting: bytes = GREETING) -> Stock:
    """Items of four bytes, whose one array is the number they hold."""

    def prepare(data: bytes | memoryview) -> dict[tuple[str, str], np.ndarray]:
        return {("s", "n"): np.frombuffer(data, np.uint32)}

    return Stock(prepare, ITEM, folder, greeting)


def lot(first: int, count: int) -> bytes:
    return np.arange(first, first + count, dtype=np.uint32).tobytes()


def numbers(found: tuple[object, dict[tuple[str, str], np.ndarray]]) -> list[int]:
    return found[1]["s", "n"].tolist()


@pytest.mark.parametrize("kept", [False, True])
def test_items_come_in_order_and_once(tmp_path: Path, kept: bool) -> None:
    one = stock(tmp_path if kept else None)
    one.add(one.end, lot(0, 3))
    one.add(one.end, lot(3, 20))
    one.ready()
    assert numbers(one.take(2)) == [0, 1]
    spans, material = one.take(3)
    assert spans == [(2, 1), (3, 2)]
    assert material["s", "n"].tolist() == [2, 3, 4]
    assert (one.count, one.next, one.end) == (18, 5, 23)


def test_what_is_added_to_an_item_is_used_with_that_item_alone() -> None:
    one = stock(None)
    assert one.following() is None
    one.add(0, lot(0, 4))
    for number in (0, 1):
        one.add_to_following({("s", "m"): np.array([number])})
        one.add_to_following({("s", "more"): np.array([10 + number])})
        item = one.following()
        assert item is not None
        assert [int(values[0]) for values in item.values()] == [number, number, 10 + number]
        spans, material = one.take(1)
        assert spans == [(number, 1)]
        assert {name: values.tolist() for name, values in material.items()} == {
            ("s", "n"): [number],
            ("s", "m"): [number],
            ("s", "more"): [10 + number],
        }
    one.add_to_following({("s", "m"): np.array([2])})
    assert one.take(2)[1].keys() == {("s", "n")}


def test_a_stock_that_is_opened_again_skips_what_may_have_been_used(tmp_path: Path) -> None:
    one = stock(tmp_path)
    one.add(0, lot(0, 40))
    assert numbers(one.take(3)) == [0, 1, 2]
    again = stock(tmp_path)
    assert 3 <= again.next <= 3 + 8
    assert numbers(again.take(1)) == [again.next - 1]
    assert not any(path.stat().st_mode & 0o077 for path in tmp_path.iterdir())


def test_parties_keep_what_both_have(tmp_path: Path) -> None:
    one, two = stock(tmp_path / "one"), stock(tmp_path / "two")
    for each in (one, two):
        each.add(0, lot(0, 10))
    two.add(10, lot(10, 10))
    two.take(4)
    mine, theirs = describe(one), describe(two)
    one.agree(theirs["next"], theirs["spans"])
    two.agree(mine["next"], mine["spans"])
    assert describe(one) == describe(two)
    assert numbers(one.take(1)) == numbers(two.take(1)) == [4]


def test_another_greeting_empties_a_stock(tmp_path: Path) -> None:
    one = stock(tmp_path)
    one.add(0, lot(0, 10))
    assert known_greeting(tmp_path) == GREETING
    assert stock(tmp_path, b"h" * 64).count == 0
    assert stock(tmp_path, GREETING).count == 0


def test_damage_is_noticed(tmp_path: Path) -> None:
    one = stock(tmp_path)
    one.add(0, lot(0, 10))
    (path,) = tmp_path.glob("0*")
    path.write_bytes(path.read_bytes()[:-1])
    assert stock(tmp_path).count == 0
    (tmp_path / "spent").write_bytes(b"")
    with pytest.raises(BundleError, match="damaged"):
        stock(tmp_path)


SPENDER = """
import sys
from pathlib import Path
from tests.backends.mpc_fss.test_stock import lot, numbers, stock
one = stock(Path(sys.argv[1]))
while True:
    if one.count < 5:
        one.add(one.end, lot(one.end, 7))
    one.ready()
    print(*numbers(one.take(int(one.next) % 3 + 1)), flush=True)
"""


def kill_and_collect(folder: Path, times: int, seed: int) -> list[int]:
    """Numbers of all items that processes used which were killed at random moments."""
    draw, used = random.Random(seed), list[int]()
    for _ in range(times):
        process = subprocess.Popen(
            [sys.executable, "-c", SPENDER, str(folder)],
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(draw.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        rest = process.communicate()[0]
        used += [int(word) for line in (first + rest).split(b"\n")[:-1] for word in line.split()]
    return used


def test_a_process_that_is_killed_uses_nothing_twice(tmp_path: Path) -> None:
    used = kill_and_collect(tmp_path / "stock", 4, seed=0)
    assert len(used) == len(set(used)) > 4
    assert used == sorted(used)


@pytest.mark.full
def test_many_processes_that_are_killed_use_nothing_twice(tmp_path: Path) -> None:
    used = kill_and_collect(tmp_path / "stock", 50, seed=1)
    assert len(used) == len(set(used)) > 50
    assert used == sorted(used)
