"""AES-256 in counter mode in place of CrypTen's random numbers, so that no party can predict another's masks.

CrypTen 0.4.1 draws every mask with `torch.randint`: the raw output of a Mersenne Twister. Whoever sees 624 words of it
knows all later ones, and a party does see them: an opened difference `x - a` of a value that it knows hands it `a`.
Here every stream is the AES-256 counter-mode key stream of a 32-byte key from `os.urandom`, and a party's process has
no other: `install` replaces CrypTen's two functions that draw masks and makes torch's own generators raise.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from secure_infer.backends.parties.streams import Stream, fresh_key

_DRAWING = ("generate_random_ring_element", "generate_kbit_random_tensor")
_TORCH_FUNCTIONS = ("randint", "rand", "randn", "randperm", "bernoulli", "normal")
_TORCH_METHODS = ("random_", "normal_", "uniform_", "bernoulli_")


def install(generators: dict[str, dict[Any, Any]], previous: bytes, following: bytes) -> None:
    """Make CrypTen draw from AES, and make everything else in torch that draws raise.

    Args:
        generators: CrypTen's table `crypten.generators`.
        previous: Key shared with the party before this one; with `following`, it yields sharings of zero.
        following: Key shared with the party after this one.
    """
    import torch

    device, local = torch.device("cpu"), Stream(fresh_key())
    for name, stream in (("prev", Stream(previous)), ("next", Stream(following)), ("local", local)):
        generators[name] = {device: stream}
    generators["global"] = {}

    def ring_element(size: Sequence[int], generator: Stream | None = None, **ignored: Any) -> torch.Tensor:
        return torch.from_numpy((generator or local).words(size))

    def random_bits(
        size: Sequence[int], bitlength: int | None = None, generator: Stream | None = None, **ignored: Any
    ) -> torch.Tensor:
        words = ring_element(size, generator)
        return words if bitlength in (None, 64) else words & ((1 << bitlength) - 1)

    for module in [module for name, module in sys.modules.items() if name.startswith("crypten.")]:
        for name, function in zip(_DRAWING, (ring_element, random_bits), strict=True):
            if hasattr(module, name):
                setattr(module, name, function)
    for owner, names in ((torch, _TORCH_FUNCTIONS), (torch.Tensor, _TORCH_METHODS)):
        for name in names:
            setattr(owner, name, _refuse)


def _refuse(*args: Any, **kwargs: Any) -> NoReturn:
    raise RuntimeError("A party draws only from AES; torch's generators can be predicted.")
