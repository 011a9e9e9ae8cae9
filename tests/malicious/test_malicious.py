"""Every malicious file is refused by a clear error of ours, in little time and memory, and nothing in it is run."""

from __future__ import annotations

import re
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from secure_infer import bundle
from secure_infer.backends.parties import messages
from secure_infer.errors import SecureInferError
from secure_infer.wire import frame
from tests.malicious.make import FOLDER, all_files

READERS: dict[str, Callable[[Path], object]] = {
    "frame": lambda path: frame.unpack(path.read_bytes(), "thing"),
    "bundle": bundle.load,
    "share": lambda path: messages.unpack(path.read_bytes(), "mpc-share", "0" * 32, 0, (5,)),
}
FILES = sorted(FOLDER.glob("*.bin"))


def test_the_folder_is_whole() -> None:
    assert {path.name for path in FILES} == set(all_files())
    assert len(FILES) > 90
    assert sum(path.stat().st_size for path in FILES) < 4_000_000


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_is_refused(path: Path) -> None:
    reader = READERS[path.name.partition("-")[0]]
    tracemalloc.start()
    started = time.monotonic()
    try:
        with pytest.raises(SecureInferError) as caught:
            reader(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    error = caught.value
    assert error.problems, "it says what is wrong, and what to do"
    assert all(problem.where and problem.what and problem.fix for problem in error.problems)
    assert len(str(error)) < 20_000
    assert not re.search(r"Traceback|0x[0-9a-f]{8}", str(error))
    assert time.monotonic() - started < 5
    assert peak < 64_000_000
