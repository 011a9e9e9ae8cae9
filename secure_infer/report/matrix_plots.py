"""Plots of the threat matrix: success by column, what attackers pay, and keys lost against bits lost."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from secure_infer import files
from secure_infer.bench.records import Record
from secure_infer.errors import missing_extra
from secure_infer.report.markdown import seconds
from secure_infer.report.matrix import NAMES, Price, measured_for
from secure_infer.report.plots import STYLE

_COLORS = {"plaintext API": "#888888", "TFHE": "#0072B2", "CKKS": "#D55E00", "MPC": "#009E73"}
_CURVES = {("rounding", 1): "#D55E00", ("flooding", 1): "#0072B2", ("flooding", 64): "#009E73"}
Draw = Callable[[Any], float]


def draw(document: Record, cost: Mapping[tuple[str, str], Price], folder: Path, stem: str) -> dict[str, str]:
    """Draw every plot that has data, as SVG and PNG files.

    Args:
        document: The record of threats.
        cost: Price of a query by protocol and form.
        folder: Where the files go.
        stem: First part of their names.

    Returns:
        The text of each SVG by title.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise missing_extra("The report", "report", "matplotlib") from error
    plots: dict[str, tuple[str, Draw, int]] = {}
    for key, row in document["rows"].items():
        measured = measured_for(document, key)
        if measured:
            plots[key] = (row["title"], lambda axes, m=measured: _shares(axes, m), len(measured))  # type: ignore[misc]
    priced = _priced(document, cost)
    if priced:
        plots["price"] = (
            "What an attacker pays for one image, or one model",
            lambda axes: _prices(axes, priced),
            len(priced),
        )
    curves = _curves(document)
    if curves:
        plots["key-curve"] = ("Keys lost against bits lost (toy ring)", lambda axes: _keys(axes, curves), 6)
    texts = {}
    with matplotlib.rc_context(STYLE):
        for name, (title, function, rows) in plots.items():
            for kind in ("svg", "png"):
                data = _drawn(title, function, rows, kind)
                files.write(folder / f"{stem}-{name}.{kind}", data)
                if kind == "svg":
                    texts[title] = data.decode()
    return texts


def _drawn(title: str, function: Draw, rows: int, kind: str) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 1), layout="constrained")
    axes = figure.add_subplot()
    figure.set_figheight(1.1 + function(axes) * rows)
    axes.set_title(title, loc="left", fontsize=11)
    buffer = io.BytesIO()
    blank = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    figure.savefig(buffer, format=kind, metadata=blank, dpi=120)
    return buffer.getvalue()


def _shares(axes: Any, measured: list[tuple[str, Record]]) -> float:
    """A row a column of the matrix: the share with its 95 % interval."""
    for place, (_, cell) in enumerate(measured):
        low, high = cell["interval"]
        reach = [[max(0.0, cell["rate"] - low)], [max(0.0, high - cell["rate"])]]
        color = _COLORS[NAMES[cell["protocol"]]]
        face = "white" if cell["mode"] == "simulated" else color
        axes.errorbar(
            cell["rate"],
            place,
            xerr=reach,
            fmt="o",
            color=color,
            markerfacecolor=face,
            markersize=7,
            capsize=3,
            linewidth=1.6,
        )
    axes.set_xlim(-0.03, 1.03)
    axes.grid(axis="x")
    _rows(axes, [name for name, _ in measured])
    axes.set_xlabel(f"{measured[0][1]['measure']}; 95 % interval; hollow: simulated")
    return 0.34


def _priced(document: Record, cost: Mapping[tuple[str, str], Price]) -> list[tuple[str, float, str]]:
    found = []
    for threat in ("evasion-white-box", "evasion-scores", "evasion-labels", "extraction"):
        if threat not in document["rows"]:
            continue
        for name, cell in measured_for(document, threat):
            price = cost.get((cell["protocol"], cell["form"]))
            if price is not None:
                found.append(
                    (f"{document['rows'][threat]['title']}, {name}", cell["queries"] * price.seconds, cell["protocol"])
                )
    return found


def _prices(axes: Any, priced: list[tuple[str, float, str]]) -> float:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for place, (_, value, protocol) in enumerate(priced):
        axes.scatter(value, place, s=52, color=_COLORS[NAMES[protocol]], zorder=3)
        axes.annotate(seconds(value), (value, place), xytext=(7, -3), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x")
    _rows(axes, [name for name, _, _ in priced])
    axes.set_xlabel("queries x latency of one encrypted query, one after another")
    return 0.3


def _curves(document: Record) -> list[Record]:
    for cell in document["cells"]:
        if cell["threat"] == "key-recovery" and "not_applicable" not in cell:
            found: list[Record] = cell["details"].get("toy_curves", [])
            return found
    return []


def _keys(axes: Any, points: list[Record]) -> float:
    for (kind, releases), color in _CURVES.items():
        own = [point for point in points if (point["countermeasure"], point["releases"]) == (kind, releases)]
        if own:
            label = kind if releases == 1 else f"{kind}, {releases} releases of one decryption"
            axes.plot([p["bits"] for p in own], [p["lost"] / p["n"] for p in own], "o-", color=color, label=label)
    axes.set_xlabel("bits by which what is told is coarser than the encryption's own error")
    axes.set_ylabel("share of keys found")
    axes.set_ylim(-0.03, 1.03)
    axes.grid()
    axes.legend(frameon=False, fontsize=9)
    return 0.4


def _rows(axes: Any, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
