"""One session of the CrypTen backend for all tests that leave it usable."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def session() -> Iterator[Any]:
    pytest.importorskip("crypten")
    from secure_infer.backends.mpc.backend import setup
    from secure_infer.backends.parties.session import Session

    session = Session(setup("dealer", 30.0))
    yield session
    session.close()
