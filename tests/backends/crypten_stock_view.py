"""Stock CrypTen multiplies party 1's vector with party 0's matrix; prints what party 1 saw, and the truth, as JSON.

Run as `python crypten_stock_view.py TFP | TTP`. Nothing of the protocol is changed: the taps copy what the process of
party 1 holds anyway.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

INPUTS, OUTPUTS = 360, 4


def party(provider: str) -> dict[str, Any] | None:
    """A party's part of the product; party 1's is what it saw."""
    import crypten
    import torch
    from crypten.mpc.primitives import arithmetic
    from crypten.mpc.provider import ttp_provider

    opened: list[Any] = []
    own: list[Any] = []
    reveal, draw = arithmetic.ArithmeticSharedTensor.reveal_batch, ttp_provider.generate_random_ring_element

    def reveal_and_note(tensors: Any, dst: Any = None) -> Any:
        result = reveal(tensors, dst)
        opened.extend(result if isinstance(result, list) else [])
        return result

    def draw_and_note(*args: Any, **kwargs: Any) -> Any:
        own.append(draw(*args, **kwargs).clone())
        return own[-1]

    arithmetic.ArithmeticSharedTensor.reveal_batch = staticmethod(reveal_and_note)
    ttp_provider.generate_random_ring_element = draw_and_note
    rank = crypten.communicator.get().get_rank()
    x, weight = torch.arange(INPUTS) % 7 - 3.0, torch.arange(INPUTS * OUTPUTS) % 11 - 5.0
    secret = crypten.cryptensor(weight.reshape(INPUTS, OUTPUTS) if rank == 0 else torch.zeros(INPUTS, OUTPUTS), src=0)
    shared = crypten.cryptensor((x if rank == 1 else x * 0).reshape(1, INPUTS), src=1)
    shared.matmul(secret)
    if rank == 0:
        return {"weight": (weight * (1 << 16)).long().tolist()}
    masks = [part.flatten().tolist() for part in own[:2]] if provider == "TTP" else [[0] * INPUTS, []]
    return {
        "x": (x * (1 << 16)).long().tolist(),
        "opened": [part.flatten().tolist() for part in opened[:2]],
        "own": masks,
    }


def main() -> None:
    """Fork the parties, and the third party if there is one."""
    warnings.simplefilter("ignore")
    import crypten
    from crypten.mpc.context import run_multiprocess

    crypten.cfg.mpc.provider = sys.argv[1]
    truth, seen = run_multiprocess(2)(party)(sys.argv[1])[:2]
    print(json.dumps({**truth, **seen}))


if __name__ == "__main__":
    main()
