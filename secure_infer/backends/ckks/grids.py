"""Images in slots: channels interleaved in the gaps of a raster, so that convolutions of any stride need few diagonals.

A convolution of stride 2 that leaves its pixels where it read them uses every second row and column of the raster; the
gaps hold the pixels of further channels (the multiplexed packing of Lee et al., ICML 2022). All entries of one kernel
position and one pair of places in the gaps then lie on one diagonal, whatever the pixel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from secure_infer.backends.ckks.packing import Grid, Layout, power_of_two

_STRIDES = (1, 2, 4)


def natural(height: int, width: int) -> Grid:
    """The raster of elements that lie one after another."""
    return Grid(height * width, width, 1)


def grids(height: int, width: int, sources: Sequence[Grid]) -> set[Grid]:
    """Rasters for channels of an image: those of what is read, each pixel, or every second or fourth; or new ones."""
    found = {Grid(s.cell, s.pitch, s.gap * stride) for s in sources for stride in _STRIDES}
    for gap in _STRIDES:
        cell, pitch = gap * height * gap * width, gap * width
        found |= {Grid(cell, pitch, gap), Grid(power_of_two(cell), pitch, gap)}
    return {g for g in found if g.gap * width <= g.pitch and (g.gap * height - 1) * g.pitch + g.gap * width <= g.cell}


def interleaved(rows: int, height: int, width: int, grid: Grid, slots: int) -> Iterator[Layout]:
    """The layouts of channels in a raster: in the shortest period and in longer ones, or in several ciphertexts."""
    channels, rest = divmod(rows, height * width)
    if rest or grid.cell > slots:
        return
    cells, place = np.divmod(np.arange(channels), grid.gap**2)
    below, right = np.divmod(place, grid.gap)
    block, cell = np.divmod(cells, slots // grid.cell)
    start = block * slots + cell * grid.cell + below * grid.pitch + right
    y, x = np.divmod(np.arange(height * width), width)
    positions = (start[:, None] + grid.gap * (y * grid.pitch + x)).reshape(-1)
    blocks = int(block[-1]) + 1
    period = slots if blocks > 1 else power_of_two((int(cells[-1]) + 1) * grid.cell)
    while period <= slots:
        yield Layout(period, blocks, positions, grid=grid)
        period *= 2
