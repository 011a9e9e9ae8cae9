"""Figures for people."""

from __future__ import annotations

import pytest

from secure_infer.cli import console


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.7, "1 kB"),
        (1450, "1.45 kB"),
        (40e6, "40 MB"),
        (999.6e6, "1 GB"),
        (2.5e12, "2500 GB"),
    ],
)
def test_size(value: float, text: str) -> None:
    assert console.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(2e-5, "0.02 ms"), (0.0123, "12.3 ms"), (0.9996, "1 s"), (3.456, "3.46 s"), (99.7, "100 s"), (1234.5, "1234 s")],
)
def test_seconds(value: float, text: str) -> None:
    assert console.seconds(value) == text


@pytest.mark.parametrize(
    ("words", "verb", "expected"),
    [
        (["models"], "models", False),
        (["models", "--json"], "models", True),
        (["demo", "--json", "demo.json"], "demo", False),
        (["demo", "--json", "-"], "demo", True),
        (["predict", "demo", "--json"], "predict", True),
    ],
)
def test_wants_json(words: list[str], verb: str, expected: bool) -> None:
    assert console.wants_json(words, verb) is expected
