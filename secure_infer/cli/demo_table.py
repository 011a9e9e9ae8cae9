"""The demo in a terminal: the digits, what each protocol makes of them, and what that costs; redrawn as it goes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from secure_infer.backends.base import Guarantee
from secure_infer.cli import console
from secure_infer.cli.demo_run import EACH, ONCE, Digit, Run
from secure_infer.errors import MissingExtra, SecureInferError

_COLUMN = 11


def draw(runs: Sequence[Run], digits: Sequence[Digit], width: int) -> RenderableType:
    """Both tables, for a terminal of `width` characters."""
    failed = [_failure(run.protocol, run.error) for run in runs if run.error is not None]
    return Group(_predictions(runs, digits, max(1, (width - 12) // _COLUMN)), _costs(runs), *failed)


def _failure(protocol: str, error: SecureInferError) -> Text:
    reason = "not installed" if isinstance(error, MissingExtra) else error.summary
    fixes = " ".join(problem.fix for problem in error.problems)
    return Text.assemble((f"{protocol:<6} ", "bold cyan"), (f"{reason}: ", "red"), fixes)


def promises(runs: Sequence[Run]) -> RenderableType:
    """Each protocol's guarantee: what it rests on, against whom, and what leaks all the same."""
    return Group(*(part for run in runs if run.guarantee for part in _promise(run.protocol, run.guarantee)))


def _promise(protocol: str, guarantee: Guarantee) -> tuple[RenderableType, ...]:
    head = str(guarantee).splitlines()[0]
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", width=9)
    grid.add_column()
    lines = [("adversary", guarantee.adversary), *(("trust", line) for line in guarantee.trust)]
    for name, line in [*lines, *(("leaks", line) for line in guarantee.leaks)]:
        grid.add_row(name, Text(line))
    return "", Text.assemble((f"{protocol}  ", "bold cyan"), head), grid


def _predictions(runs: Sequence[Run], digits: Sequence[Digit], room: int) -> Table:
    shown = digits[:room]
    table = Table(box=None, padding=(0, 3, 0, 0), show_header=False, pad_edge=False)
    table.add_column(width=6)
    for _ in shown:
        table.add_column(width=8, justify="center")
    table.add_row("", *(picture(digit) for digit in shown))
    table.add_row(Text("truth", style="dim"), *(Text(str(digit.label), style="bold") for digit in shown))
    for run in runs:
        cells = [_cell(run, position, digit) for position, digit in enumerate(shown)]
        table.add_row(Text(run.protocol, style="bold cyan"), *cells)
    if len(digits) > len(shown):
        table.add_row("", Text(f"... and {len(digits) - len(shown)} more", style="dim"))
    return table


def _cell(run: Run, position: int, digit: Digit) -> Text:
    if position >= len(run.readings):
        return Text("..." if run.phase == f"digit {position + 1}" else "", style="dim")
    reading = run.readings[position]
    right = reading.predicted == digit.label
    mark = "" if reading.predicted == reading.clear else " !"
    return Text(f"{reading.predicted}{mark}", style="bold green" if right else "bold red")


def picture(digit: Digit) -> Text:
    """The image in half blocks: each character is two pixels, one above the other."""
    levels = np.rint(digit.pixels * 255).astype(int)
    text = Text()
    for top, bottom in zip(levels[0::2], levels[1::2], strict=True):
        for upper, lower in zip(top, bottom, strict=True):
            text.append("▀", style=f"rgb({upper},{upper},{upper}) on rgb({lower},{lower},{lower})")
        text.append("\n")
    text.right_crop(1)
    return text


def _costs(runs: Sequence[Run]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("", width=6)
    for name in (*ONCE, *EACH, "keys", "input", "output", "agree"):
        table.add_column(name, justify="right", no_wrap=True, min_width=6)
    for run in runs:
        table.add_row(Text(run.protocol, style="bold cyan"), *_figures(run), _state(run))
    return table


def _figures(run: Run) -> list[str]:
    times, sizes = run.phases_s(), run.sizes()
    cells = [console.seconds(times[phase]) if phase in times else "" for phase in (*ONCE, *EACH)]
    cells += [console.size(sizes[name]) if run.readings else "" for name in ("evaluation_keys", "input", "output")]
    # Without the space before the unit, the table fits 80 columns.
    return [cell.replace(" ", "") for cell in cells]


def _state(run: Run) -> Text:
    if run.phase == "failed":
        return Text("failed", style="red")
    if run.phase == "done":
        whole = run.agreeing() == len(run.readings)
        return Text(f"{run.agreeing()}/{len(run.readings)}", style="bold green" if whole else "bold red")
    return Text(run.phase, style="yellow" if run.phase != "waiting" else "dim")
