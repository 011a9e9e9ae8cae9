"""The protocols over Z_2^64: products with weights, comparison, exact shift, on shares as int64 arrays.

Shares are additive: x is the sum of all xp modulo 2^64, party p holds xp; there are two parties or three. CrypTen's
binary sharings, Beaver AND and Beaver multiplication are used as they are; what is added saves rounds and bytes without
a change of security:

- A weight W is masked once: the parties p > 0 learn W - B, and each product needs one message from each, `xp - ap` (the
  preprocessing of Delphi, Mishra et al., USENIX Security 2020, with a dealer in place of homomorphic encryption).
- A comparison runs on as many bits as the values have, several values to a 64-bit word.
- Three numbers become two with the same sum before carries are looked for: the XOR of their bits, which is shared
  already, and the majority of their bits, one place up (a carry-save adder).
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from crypten.mpc.primitives import ArithmeticSharedTensor, BinarySharedTensor, beaver

from secure_infer.backends.mpc.correlations import Correlations
from secure_infer.backends.mpc.kernels import bilinear, matmul
from secure_infer.backends.parties.channel import Channel, as_bytes, exchange_all
from secure_infer.graph.types import Integers

_INTEGERS: dict[int, Any] = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
WORD_BITS = 64


def wrapped(value: int) -> int:
    """A Python integer as the int64 that it is congruent to modulo 2^64."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def told(peers: Sequence[Channel], words: Integers) -> list[Integers]:
    """Tell all other parties an int64 array, and hear one of the same shape from each, in one round."""
    data = as_bytes(words)
    return [np.frombuffer(part, np.int64).reshape(words.shape) for part in exchange_all(peers, data, len(data))]


class Communicator:
    """What CrypTen's protocols ask of a communicator, over channels; nothing is pickled.

    Args:
        rank: Number of this party.
        peers: The channels to the other parties.
    """

    def __init__(self, rank: int, peers: Sequence[Channel]) -> None:
        self._rank, self._peers = rank, peers

    def get_rank(self) -> int:
        """Number of this party."""
        return self._rank

    def get_world_size(self) -> int:
        """How many parties there are."""
        return len(self._peers) + 1

    def all_reduce(self, tensors: Any, op: Any = torch.distributed.ReduceOp.SUM, batched: bool = False) -> Any:
        """Sum (or XOR) of all parties' tensors; a list of them travels as one message."""
        parts = tensors if batched else [tensors]
        total = mine = torch.cat([part.reshape(-1) for part in parts]).numpy()
        for theirs in told(self._peers, mine):
            total = total + theirs if op == torch.distributed.ReduceOp.SUM else total ^ theirs
        pieces = torch.split(torch.from_numpy(total), [part.numel() for part in parts])
        results = [piece.reshape(part.shape) for piece, part in zip(pieces, parts, strict=True)]
        return results if batched else results[0]


class Protocols:
    """The protocols of one party.

    Args:
        rank: 0, which holds the model, or another.
        peers: The channels to the other parties, in their order.
        correlations: This party's correlated randomness.
    """

    def __init__(self, rank: int, peers: Sequence[Channel], correlations: Correlations) -> None:
        self.rank, self._peers, self._correlations = rank, peers, correlations
        self._weights: dict[str, Integers] = {}

    def share_weight(self, name: str, shape: tuple[int, ...], weight: Integers | None) -> None:
        """Give all others the masked weight W - B, once; party 0 keeps W."""
        if weight is None:
            self._weights[name] = self._peers[0].receive_words(shape)
            return
        self._weights[name] = weight
        masked = weight - self._correlations.mask(name, shape)
        for peer in self._peers:
            peer.send_words(masked)

    def forget_weights(self) -> None:
        """Drop all weights."""
        self._weights.clear()

    def refresh(self, share: Integers, bits: int = WORD_BITS) -> Integers:
        """A fresh share of the low `bits` of the same value, so that shares sent to a client say nothing else.

        What lies above them may depend on weights: it is cut off.
        """
        fresh = share + ArithmeticSharedTensor.PRZS(share.shape).share.numpy()
        return np.asarray(fresh & wrapped((1 << bits) - 1))

    def product(
        self, name: str, spec: Mapping[str, Any], x: Integers, result: tuple[int, ...], bits: int = WORD_BITS
    ) -> Integers:
        """Shares of `spec(x, W)` for the weight called `name`, of shape `result`; one message, to party 0.

        With ep = xp - ap, party 0 computes spec(x0 + all ep, W) + c0 and party p > 0 spec(ap, W - B) + cp, where the c
        add up to spec(all ap, B); the sum is spec(x, W). Where only the low `bits` of it matter, only those of ep are
        sent.
        """
        mask, part = self._correlations.product(name, spec, x.shape, result)
        if self.rank > 0:
            self._peers[0].send(as_bytes((x - mask).astype(_INTEGERS[bits])))
            factor = mask
        else:
            factor = x
            for peer in self._peers:
                masked = np.frombuffer(peer.receive(x.size * bits // 8), _INTEGERS[bits])
                factor = factor + masked.reshape(x.shape)
        return bilinear(spec, factor, self._weights[name]) + part

    def multiply(self, x: Integers, y: Integers) -> Integers:
        """Shares of x * y, both shared, with broadcasting; one round."""
        factors = (
            ArithmeticSharedTensor.from_shares(torch.from_numpy(np.ascontiguousarray(v)), precision=0) for v in (x, y)
        )
        return np.asarray(beaver.mul(*factors).share.numpy())

    def matrix_product(self, x: Integers, y: Integers) -> Integers:
        """Shares of the matrix product of x, shape `(m, k)`, and y, shape `(k, n)`, both shared; one round."""
        a, b, c = self._correlations.matrix_triple(x.shape, y.shape)
        opened = np.concatenate([(x - a).reshape(-1), (y - b).reshape(-1)])
        opened = sum(told(self._peers, opened), opened)
        left, right = opened[: x.size].reshape(x.shape), opened[x.size :].reshape(y.shape)
        result = c + matmul(a, right) + matmul(left, b)
        return result + matmul(left, right) if self.rank == 0 else result

    def negative(self, x: Integers, width: int) -> Integers:
        """Shares of the bit [x < 0] for `-2^(width-1) <= x < 2^(width-1)`; `log2(width) + 2` rounds, of three one more.

        Args:
            x: Shares, any shape.
            width: 8, 16, 32 or 64 bits; narrow values share a word.
        """
        if not x.size:
            return x
        signs = self._signs(_planes(x.reshape(-1).astype(_INTEGERS[width])))
        bits = np.unpackbits(signs.view(np.uint8), count=x.size, bitorder="little")
        return self._to_arithmetic(bits).reshape(x.shape)

    def shift(self, x: Integers, places: int) -> Integers:
        """Shares of `floor(x / 2^places)`, exact for every int64 x and 1 <= places <= 63; eight rounds, of three nine.

        With x' = x + 2^63 as an unsigned number, x' is the sum of all xp' - w 2^64, w the number of carries out of the
        top bit; floor(x' / 2^s) is the sum of all (xp' >> s) plus k - w 2^(64-s), k the number of carries into bit s.
        """
        flat = x.reshape(-1) ^ (wrapped(1 << 63) if self.rank == 0 else 0)
        adders = self._carries(flat, 6)
        bits = np.stack([carries >> place & 1 for place in (places - 1, 63) for carries in adders]).astype(np.uint8)
        carry, wrap = self._to_arithmetic(bits).reshape(2, len(adders), -1).sum(axis=1)
        high = flat >> places & ((1 << (WORD_BITS - places)) - 1)
        result = high + carry + wrap * wrapped(-(1 << (WORD_BITS - places)))
        return np.asarray(result - (1 << (63 - places)) if self.rank == 0 else result).reshape(x.shape)

    def _pairs(self, mine: Integers) -> Integers:
        """Binary shares of the AND of two parties' words, or of the majority of three parties', in one round.

        Both are the XOR of the ANDs of all pairs. With all xp ^ ap open, party 0 takes x0 and each other party ap AND
        the XOR of what the others opened, party 0 also the ANDs of pairs that it takes no part in; the dealer's part
        makes up for the ANDs of pairs of masks.
        """
        mask, part = self._correlations.own_triple(mine.shape)
        opened = told(self._peers, mine ^ mask)
        result = (reduce(operator.xor, opened) & (mine if self.rank == 0 else mask)) ^ part
        for one, other in combinations(opened, 2) if self.rank == 0 else ():
            result = result ^ (one & other)
        return result

    def _signs(self, planes: Integers) -> Integers:
        """Binary shares of the top bit of the sum of all parties' numbers, whose bits are planes, lowest first.

        It is the XOR of all top bits and of the carry into their place; `log2(width) + 1` rounds, of three one more.
        """
        low, pairs = planes[:-1], self._pairs(planes[:-1])
        if len(self._peers) == 1:
            return np.asarray(planes[-1] ^ self._carry(pairs, low))
        generate, propagate = self._and(low[1:], pairs[:-1]), low[1:] ^ pairs[:-1]
        return np.asarray(planes[-1] ^ pairs[-1] ^ self._carry(generate, propagate))

    def _and(self, x: Integers, y: Integers) -> Integers:
        """Binary shares of x & y, both shared, in one round."""
        left, right = (BinarySharedTensor.from_shares(torch.from_numpy(words)) for words in (x, y))
        return np.asarray(beaver.AND(left, right).share.numpy())

    def _carry(self, generated: Integers, propagated: Integers) -> Integers:
        """Binary shares of the carry out of a sum: planes of where one is generated and propagated, lowest first.

        A tree of blocks: each generates a carry or propagates the one from below, and two neighbors make one.
        """
        generate, propagate = torch.from_numpy(generated), torch.from_numpy(propagated)
        while len(generate) > 1:
            paired, last = len(generate) // 2 * 2, len(generate) == 2
            low, high = slice(0, paired, 2), slice(1, paired, 2)
            lower = torch.stack([generate[low]] if last else [generate[low], propagate[low]])
            update = beaver.AND(*(BinarySharedTensor.from_shares(part) for part in (propagate[high], lower))).share
            generate = torch.cat([generate[high] ^ update[0], generate[paired:]])
            propagate = torch.cat([update[-1], propagate[paired:]])
        return np.asarray(generate[0].numpy())

    def _carries(self, share: Integers, levels: int) -> list[Integers]:
        """Binary shares of the carries out of each bit of the sum of all parties' words; `levels + 1` rounds.

        Three words take a round more and have two carries out of each bit: the majority of its bits, and that of the
        sum of the two words that are left. Carries are right within aligned blocks of `2**levels` bits. A carry is
        generated where both bits are set and propagated where one is; a prefix tree joins neighboring blocks (Damgård
        et al., TCC 2006, section 6.3).
        """
        pairs = self._pairs(share)
        if len(self._peers) == 1:
            return [self._prefixes(pairs, share, levels)]
        return [pairs, self._prefixes(self._and(share, pairs << 1), share ^ (pairs << 1), levels)]

    def _prefixes(self, generated: Integers, propagated: Integers, levels: int) -> Integers:
        """Binary shares of the carries out of each bit of a sum, from words of where they are made and passed on."""
        parts = torch.from_numpy(generated), torch.from_numpy(propagated)
        generate, alive = (BinarySharedTensor.from_shares(part) for part in parts)
        for level in range(levels):
            span = 1 << level
            ends = sum(1 << bit for bit in range(span - 1, WORD_BITS, 2 * span))
            fan = (1 << (span + 1)) - 2
            above, last = wrapped(ends * fan), level == levels - 1
            lower = BinarySharedTensor.stack([generate] if last else [generate, alive]) & torch.tensor(wrapped(ends))
            lower.share = lower.share * fan
            update = beaver.AND(alive & torch.tensor(above), lower)
            generate = generate ^ update[0]
            if not last:
                alive = (alive & torch.tensor(~above)) ^ update[1]
        return np.asarray(generate.share.numpy())

    def _to_arithmetic(self, bits: npt.NDArray[np.uint8]) -> Integers:
        """Additive shares of binary-shared bits; one round, eight bits to a byte."""
        arithmetic, binary = self._correlations.bits(bits.shape)
        mine = np.packbits((bits ^ binary).reshape(-1))
        theirs = (np.frombuffer(part, np.uint8) for part in exchange_all(self._peers, mine.tobytes(), mine.size))
        opened = np.unpackbits(reduce(operator.xor, theirs, mine), count=bits.size).reshape(bits.shape).astype(np.int64)
        # r XOR z = r (1 - 2 z) + z, for a public bit z.
        result = arithmetic * (1 - 2 * opened)
        return np.asarray(result + opened if self.rank == 0 else result)

    def measure(self) -> dict[str, float]:
        """Seconds for a comparison and a product, on large batches so that rounds do not count twice."""
        compared = np.zeros(1 << 14, dtype=np.int64)
        comparison = _seconds(lambda: self.negative(compared, 16), 3) / compared.size
        square = np.arange(1 << 16, dtype=np.int64).reshape(256, 256) << 40
        return {
            "comparisons": comparison,
            "multiplications": _seconds(lambda: matmul(square, square), 3) / square.shape[0] ** 3,
        }


def _planes(lanes: npt.NDArray[Any]) -> Integers:
    """The bits of n integers, `(bits, words)`: all lowest ones, packed into words, then those above."""
    bits = np.unpackbits(lanes.view(np.uint8).reshape(len(lanes), -1), axis=1, bitorder="little")
    packed = np.packbits(np.ascontiguousarray(bits.T), axis=1, bitorder="little")
    return np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8))).view(np.int64)


def _seconds(act: Callable[[], object], repeats: int) -> float:
    act()
    start = time.perf_counter()
    for _ in range(repeats):
        act()
    return (time.perf_counter() - start) / repeats
