"""Plots of benchmark records as SVG. Needs matplotlib."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from secure_infer import files
from secure_infer.bench.records import Record
from secure_infer.errors import missing_extra
from secure_infer.report.markdown import ratio, seconds, size
from secure_infer.report.select import Duel, duels, headline, name_of

# Okabe and Ito's colors, which color-blind readers tell apart.
_BLUE, _ORANGE, _GREEN, _PURPLE, _SKY, _GRAY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#888888"
_PHASES = {"compile": _GRAY, "keygen": _PURPLE, "encrypt": _SKY, "run": _ORANGE, "decrypt": _GREEN}
_ONCE = ("compile", "keygen")
_BYTES = {
    "evaluation_keys_sent": ("evaluation keys, sent once", _PURPLE),
    "input": ("input, an image", _SKY),
    "output": ("output, an image", _GREEN),
}
STYLE = {
    "svg.hashsalt": "secure_infer",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "axes.edgecolor": "#999999",
    "xtick.color": "#444444",
    "ytick.color": "#222222",
    "ytick.major.size": 0,
}


def write_plots(records: Sequence[Record], folder: Path) -> list[Path]:
    """Draw every plot that has data.

    Args:
        records: Records of `secure-infer bench`.
        folder: Where the SVG files go.

    Returns:
        The files written.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise missing_extra("The report", "report", "matplotlib") from error
    ours = headline(records)
    drawn: list[tuple[str, Callable[[Any], float], int]] = []
    if ours:
        drawn.append(("latency", lambda axes: _latency(axes, ours), len(ours)))
    encrypted = [record for record in ours if record["n_encrypted"]]
    if encrypted:
        drawn.append(("traffic", lambda axes: _traffic(axes, encrypted), len(encrypted)))
    beside = list(duels(records))
    if beside:
        drawn.append(("peers", lambda axes: _peers(axes, beside), len(beside)))
    with matplotlib.rc_context(STYLE):
        return [files.write(folder / f"{name}.svg", _svg(draw, rows)) for name, draw, rows in drawn]


def _svg(draw: Callable[[Any], float], rows: int) -> bytes:
    """One plot; `draw` gives the height of a row in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 1), layout="constrained")
    axes = figure.add_subplot()
    figure.set_figheight(1.3 + draw(axes) * rows)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _latency(axes: Any, records: Sequence[Record]) -> float:
    """A row a model and protocol: a dot for each phase on a log axis, hollow for what happens once."""
    for row, record in enumerate(records):
        found = {phase: record["wall_s"][phase] for phase in _PHASES if record["wall_s"][phase]}
        axes.hlines(row, min(found.values()), max(found.values()), color="#dddddd", linewidth=2, zorder=1)
        for phase, value in found.items():
            face = "white" if phase in _ONCE else _PHASES[phase]
            axes.scatter(value, row, s=62, facecolor=face, edgecolor=_PHASES[phase], linewidth=2, zorder=3)
        above = dict(xytext=(0, 8), textcoords="offset points", ha="center", color=_ORANGE, fontsize=9)
        axes.annotate(seconds(found["run"]), (found["run"], row), **above)
    for phase, color in _PHASES.items():
        name, face = (f"{phase} (once)", "white") if phase in _ONCE else (phase, color)
        axes.scatter([], [], s=62, facecolor=face, edgecolor=color, linewidth=2, label=name)
    _frame(axes, [_label(record) for record in records], "wall time by phase, median an image", seconds)
    return 0.45


def _traffic(axes: Any, records: Sequence[Record]) -> float:
    """A row a model and protocol, with a bar for keys, input and output."""
    height = 0.26
    for position, (name, (label, color)) in enumerate(_BYTES.items()):
        rows = [row + (position - 1) * height for row in range(len(records))]
        values = [record["bytes"][name] or 0 for record in records]
        bars = axes.barh(rows, values, height * 0.86, color=color, label=label)
        names = [size(value) if value else "none" for value in values]
        axes.bar_label(bars, names, padding=3, fontsize=8, color="#444444")
    axes.set_xlim(left=10)
    _frame(axes, [_label(record) for record in records], "bytes that the client sends and receives", size)
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * 4)
    return 0.75


def _peers(axes: Any, found: Sequence[Duel]) -> float:
    """How many times longer a peer's server takes, with the 95 % interval of the ratio of medians."""
    for row, duel in enumerate(found):
        reach = [[duel.ratio - duel.low], [duel.high - duel.ratio]]
        color = _GREEN if duel.low > 1 else _ORANGE if duel.high < 1 else _GRAY
        axes.errorbar(duel.ratio, row, xerr=reach, fmt="o", color=color, markersize=8, capsize=4, linewidth=2)
        text = dict(xytext=(0, 9), textcoords="offset points", ha="center", fontsize=9, color=color)
        axes.annotate(f"{ratio(duel.ratio)} x", (duel.ratio, row), **text)
    axes.axvline(1, color="#222222", linewidth=1)
    low, high = min(duel.low for duel in found), max(duel.high for duel in found)
    axes.set_xlim(min(0.5, low / 2), max(2, high * 2))
    names = [f"{name_of(duel.peer)} / {name_of(duel.ours)}\n{duel.peer['model']}" for duel in found]
    _frame(axes, names, "peer's run time / ours; right of the line, ours is faster", ratio, legend=False)
    return 0.6


def _frame(axes: Any, names: Sequence[str], title: str, number: Callable[[float], str], legend: bool = True) -> None:
    """What all plots share: log axis with readable numbers, names of the rows, title, legend below."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(10, numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.7)
    axes.set_title(title, loc="left", fontsize=11)
    if legend:
        axes.figure.legend(loc="outside lower left", ncols=5, frameon=False, fontsize=9)


def _label(record: Mapping[str, Any]) -> str:
    return f"{record['model']}  {record['protocol']}"
