"""A party's stock of one-use correlations: each is marked as spent, durably, before it is used, and never used again.

In memory for a session that its process does not outlive; else in a folder:

greeting          the dealer's greeting, mode 0600: lots fit the masks that it names
spent             number of the first item that is not spent, 8 bytes; written and synced before an item is used
<first>-<count>   a lot, mode 0600; deleted when it is spent
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from secure_infer import files
from secure_infer.backends.mpc_fss.material import Material
from secure_infer.errors import BundleError, Problem

Span = tuple[int, int]
"""Number of a lot's first item, and how many items it has."""
_LEASE = 8  # items that are marked as spent at once, at most; a crash loses those that were not used
_SHARE = 16  # at most this part of the stock is marked at once
_NAME = re.compile(r"([0-9]{16})-([0-9]{8})")
_SPENT, _GREETING = "spent", "greeting"


@dataclass(eq=False)
class _Lot:
    span: Span
    data: bytes | memoryview | None
    material: Material | None = field(default=None)

    @property
    def end(self) -> int:
        return self.span[0] + self.span[1]


class Stock:
    """Items, in the order of their numbers.

    Args:
        prepare: Makes a lot's arrays from what was sent.
        item_bytes: Bytes of one item as it was sent.
        folder: Where it is kept; None for memory alone.
        greeting: The dealer's, as a message; whatever the folder holds under another one is deleted.
    """

    def __init__(
        self, prepare: Callable[[bytes | memoryview], Material], item_bytes: int, folder: Path | None, greeting: bytes
    ) -> None:
        self._prepare, self._item_bytes, self._folder = prepare, item_bytes, folder
        self._lots: list[_Lot] = []
        self._next = self._leased = 0
        self._extra: tuple[int, Material] = (-1, {})
        if folder is not None:
            self._open(folder, greeting)

    @property
    def spans(self) -> list[Span]:
        """All lots with items that are not spent."""
        return [lot.span for lot in self._lots]

    @property
    def next(self) -> int:
        """No item below this number will be used."""
        return self._next

    @property
    def count(self) -> int:
        """Items that are left."""
        return sum(lot.end - max(lot.span[0], self._next) for lot in self._lots)

    @property
    def end(self) -> int:
        """Number of the next item to be dealt."""
        return max([self._next, *(lot.end for lot in self._lots)])

    def agree(self, following: int, spans: Sequence[Span]) -> None:
        """Keep only what the other party has as well, and skip what either has spent."""
        self._next = max(self._next, following)
        self._leased = max(self._leased, self._next)
        theirs = set(spans)
        for lot in list(self._lots):
            if lot.span not in theirs or lot.end <= self._next:
                self._drop(lot)

    def add(self, first: int, data: bytes | memoryview) -> None:
        """Take in a lot that was dealt; in a folder, before it counts."""
        lot = _Lot((first, len(data) // self._item_bytes), data)
        if self._folder is not None:
            files.write(self._path(lot), bytes(data), mode=files.PRIVATE)
        self._lots.append(lot)

    def ready(self) -> None:
        """Prepare and mark what the next run is likely to take, so that it need not wait."""
        if self._lots:
            self._prepared(self._lots[0])
            if self.next + 1 > self._leased:
                self._lease(self._next + max(1, min(_LEASE, self.count // _SHARE)))

    def following(self) -> Material | None:
        """The arrays of the item that the next run takes first, with what was added to them; None if none is left."""
        if not self._lots:
            return None
        at, extra = max(self._lots[0].span[0], self._next), self._extra
        place = slice(at - self._lots[0].span[0], at - self._lots[0].span[0] + 1)
        arrays = {name: values[place] for name, values in self._prepared(self._lots[0]).items()}
        return {**arrays, **extra[1]} if extra[0] == at else arrays

    def add_to_following(self, arrays: Material) -> None:
        """Add arrays to the item that the next run takes first; a run of several items does without them."""
        at = max(self._lots[0].span[0], self._next)
        self._extra = (at, {**(self._extra[1] if self._extra[0] == at else {}), **arrays})

    def take(self, count: int) -> tuple[list[Span], Material]:
        """Spend so many items; there must be as many.

        Returns:
            Which they are, and their arrays.
        """
        used: list[Span] = []
        parts: list[Material] = []
        while count:
            lot = self._lots[0]
            start = max(self._next, lot.span[0])
            stop = min(lot.end, start + count)
            if stop > self._leased:
                self._lease(stop)
            at = slice(start - lot.span[0], stop - lot.span[0])
            parts.append({name: values[at] for name, values in self._prepared(lot).items()})
            used.append((start, stop - start))
            count, self._next = count - (stop - start), stop
            if stop == lot.end:
                self._drop(lot)
        if used == [(self._extra[0], 1)]:
            return used, {**parts[0], **self._extra[1]}
        if len(parts) == 1:
            return used, parts[0]
        return used, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _prepared(self, lot: _Lot) -> Material:
        if lot.material is None:
            lot.material = self._prepare(lot.data if lot.data is not None else files.read(self._path(lot)))
            lot.data = None
        return lot.material

    def _lease(self, stop: int) -> None:
        """Mark all items below `stop` as spent; on the disk before this returns."""
        if self._folder is not None:
            files.write(self._folder / _SPENT, stop.to_bytes(8, "little"), mode=files.PRIVATE)
            _sync(self._folder)
        self._leased = stop

    def _drop(self, lot: _Lot) -> None:
        self._lots.remove(lot)
        if self._folder is not None:
            self._path(lot).unlink(missing_ok=True)

    def _path(self, lot: _Lot) -> Path:
        assert self._folder is not None
        return self._folder / f"{lot.span[0]:016d}-{lot.span[1]:08d}"

    def _open(self, folder: Path, greeting: bytes) -> None:
        """Read what is there, or make the folder anew for another greeting."""
        place = folder / _GREETING
        if not place.exists() or files.read(place) != greeting:
            clear(folder)
            self._lease(0)
            files.write(place, greeting, mode=files.PRIVATE)
        spent = files.read(folder / _SPENT)
        if len(spent) != 8:
            raise BundleError(
                "The stock of correlations is damaged.",
                [Problem(str(folder / _SPENT), "It is no number.", "delete the folder, so that more is dealt.")],
            )
        self._next = self._leased = int.from_bytes(spent, "little")
        for path in sorted(folder.iterdir()):
            named = _NAME.fullmatch(path.name)
            if named:
                lot = _Lot((int(named[1]), int(named[2])), None)
                whole = path.stat().st_size == lot.span[1] * self._item_bytes
                if whole and lot.end > self._next:
                    self._lots.append(lot)
                else:
                    path.unlink()


def clear(folder: Path) -> None:
    """Delete a stock, lots first: a crash on the way leaves nothing that could be used twice."""
    if folder.is_dir():
        for path in sorted(folder.iterdir(), key=lambda path: path.name in (_SPENT, _GREETING)):
            with contextlib.suppress(OSError):
                path.unlink()


def known_greeting(folder: Path) -> bytes | None:
    """The greeting that a stock was dealt under; None if there is no stock."""
    place = folder / _GREETING
    return files.read(place) if place.exists() else None


def _sync(folder: Path) -> None:
    """Make a rename in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def as_spans(value: Any) -> list[Span]:
    """Spans that came as JSON.

    Raises:
        ValueError, TypeError: They are none.
    """
    return [(int(first), int(count)) for first, count in value]


def describe(stock: Stock) -> Mapping[str, Any]:
    """What the other party must know to agree."""
    return {"next": stock.next, "spans": stock.spans}
