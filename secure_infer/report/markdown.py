"""Markdown tables, and numbers as people write them."""

from __future__ import annotations

from collections.abc import Sequence

NOTHING = "-"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table whose first `left` columns are aligned to the left and the others to the right."""
    rule = ["---" if column < left else "--:" for column in range(len(header))]
    lines = [_line(header), _line(rule), *(_line(row) for row in rows)]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def seconds(value: float | None) -> str:
    """A duration: `0.31 ms`, `42 ms`, `1.7 s`, `5 min`, `4.4 h`."""
    if value is None:
        return NOTHING
    if value < 1e-3:
        return f"{_digits(value * 1e6)} µs"
    if value < 0.9995:
        return f"{_digits(value * 1e3)} ms"
    if value < 100:
        return f"{_digits(value)} s"
    return f"{value / 60:.0f} min" if value < 5970 else f"{_digits(value / 3600)} h"


def size(count: float | None) -> str:
    """A number of bytes: `6.4 MB`."""
    if count is None or count == 0:
        return NOTHING
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{_digits(count)} {unit}"
        count /= 1000
    return f"{_digits(count)} GB"


def share(value: float | None, interval: Sequence[float] | None = None) -> str:
    """A proportion in percent, with its interval if there is one: `96.7 % (83.3-99.4)`."""
    if value is None:
        return NOTHING
    text = f"{100 * value:.1f} %"
    return text if interval is None else f"{text} ({100 * interval[0]:.1f}-{100 * interval[1]:.1f})"


def ratio(value: float | None) -> str:
    """A factor: `3.1`, `140`."""
    return NOTHING if value is None else _digits(value)


def _digits(value: float) -> str:
    """Two significant digits below 100, none after the point above."""
    return f"{value:.0f}" if value >= 99.5 else f"{value:.2g}" if value < 9.95 else f"{value:.0f}"
