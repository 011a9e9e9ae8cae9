"""What JPEG loses: block transform, standard quantization tables, color (ITU-T T.81, JFIF); torch alone, batched.

The entropy coding that follows in a file loses nothing and is left out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from secure_infer.errors import InvalidInput, Problem

_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
"""Table K.1 of ITU-T T.81."""
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
"""Table K.2 of ITU-T T.81."""
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
"""Red, green, blue to luminance and two chrominances around 0 (JFIF 1.02)."""


def jpeg(images: Tensor, quality: int, *, subsample: bool = True) -> Tensor:
    """Images as they come back from a JPEG file of 8-bit samples.

    Args:
        images: Gray or color, in [0, 1], `(n, 1 or 3, height, width)`; sides need not be multiples of 8.
        quality: 1 to 100, as the Independent JPEG Group's library scales the tables.
        subsample: Halve both sides of the chrominances (4:2:0), as that library does by default.

    Returns:
        Same shape, multiples of 1/255.

    Raises:
        InvalidInput: No images, or no such quality.
    """
    problems = []
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        problems.append(Problem("images", f"Shape {tuple(images.shape)}.", "give (n, 1 or 3, height, width)."))
    if not 1 <= quality <= 100:
        problems.append(Problem("quality", f"{quality}.", "give 1 to 100."))
    if problems:
        raise InvalidInput("JPEG can't compress this.", problems)
    samples = (images * 255).round()
    if images.shape[1] == 1:
        return _rounded(_plane(samples, _LUMINANCE, quality))
    planes = _ycc(samples)
    luminance = _plane(planes[:, :1], _LUMINANCE, quality)
    return _rounded(_rgb(torch.cat([luminance, _chrominances(planes[:, 1:], quality, subsample)], 1)))


def _rounded(samples: Tensor) -> Tensor:
    return samples.round().clamp(0, 255) / 255


def _ycc(samples: Tensor) -> Tensor:
    matrix = torch.tensor(_TO_YCC, dtype=torch.float64)
    mixed = torch.einsum("ij,njhw->nihw", matrix.to(samples), samples)
    return (mixed + mixed.new_tensor([0, 128, 128]).view(3, 1, 1)).round().clamp(0, 255)


def _rgb(planes: Tensor) -> Tensor:
    inverse = torch.linalg.inv(torch.tensor(_TO_YCC, dtype=torch.float64))
    shifted = planes.round().clamp(0, 255) - planes.new_tensor([0, 128, 128]).view(3, 1, 1)
    return torch.einsum("ij,njhw->nihw", inverse.to(planes), shifted)


def _chrominances(planes: Tensor, quality: int, subsample: bool) -> Tensor:
    if not subsample:
        return _plane(planes, _CHROMINANCE, quality)
    height, width = planes.shape[2:]
    even = functional.pad(planes, (0, width % 2, 0, height % 2), mode="replicate")
    small = _plane(functional.avg_pool2d(even, 2).round(), _CHROMINANCE, quality).round().clamp(0, 255)
    large: Tensor = functional.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
    return large[:, :, :height, :width]


def _plane(samples: Tensor, table: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """Quantize the 8x8 blocks of planes `(n, c, h, w)` of samples 0 to 255; edges are repeated to whole blocks."""
    n, c, height, width = samples.shape
    padded = functional.pad(samples, (0, -width % 8, 0, -height % 8), mode="replicate") - 128
    rows, columns = padded.shape[2] // 8, padded.shape[3] // 8
    blocks = padded.view(n, c, rows, 8, columns, 8).transpose(3, 4)
    basis, steps = _basis().to(samples), _steps(table, quality).to(samples)
    coefficients = (basis @ blocks @ basis.T / steps).round() * steps
    restored: Tensor = (basis.T @ coefficients @ basis).transpose(3, 4).reshape(padded.shape) + 128
    return restored[:, :, :height, :width]


def _basis() -> Tensor:
    """The orthonormal cosine transform of 8 samples, `(frequency, sample)`."""
    sample = torch.arange(8, dtype=torch.float64)
    basis: Tensor = torch.cos(math.pi / 16 * (2 * sample + 1) * sample[:, None]) / 2
    basis[0] /= math.sqrt(2)
    return basis


def _steps(table: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return torch.div(torch.tensor(table) * percent + 50, 100, rounding_mode="floor").clamp(1, 255)
