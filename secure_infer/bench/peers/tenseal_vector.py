"""TenSEAL: its CKKSVector recipe for convolutional networks (im2col, square, matrix product) on our very graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from secure_infer.bench.cases import Entry
from secure_infer.bench.contender import Reals, Sample, Setup, Subject
from secure_infer.bench.ours import evaluate, graph_of
from secure_infer.bench.peers.squares import Affine, first_convolution, kernels, squares_form, unsuited
from secure_infer.client import Stopwatch
from secure_infer.errors import Problem, UnsupportedNetwork, UsageError, missing_extra

_SCALE_BITS = 40
_OUTER_BITS = {26: 31, 40: 60}
"""Bits of the first and last prime for a scale: those of TenSEAL's tutorial for 26, of its examples for 40."""
_MOST_BITS = {8192: 218, 16384: 438, 32768: 881}
"""Bits of all primes by ring degree at 128-bit security, from the Homomorphic Encryption Standard (2018)."""


class TensealVector:
    """A network of squares as TenSEAL's own tutorial runs it.

    Args:
        subject: A chain of affine layers and quadratics; a first convolution of one channel goes through im2col.
        entry: The option `scale_bits` is 40 by default. TenSEAL's tutorial has 26, which is faster and far less exact.

    Raises:
        MissingExtra: TenSEAL is not installed.
        UnsupportedNetwork: The network is no such chain.
        UsageError: Another option or scale.
    """

    def __init__(self, subject: Subject, entry: Entry) -> None:
        try:
            import tenseal
        except ImportError as error:
            raise missing_extra("The peer tenseal", "ckks", "tenseal") from error
        self._ts, watch, scale_bits = tenseal, Stopwatch(), _scale_bits(entry)
        self._headroom = 2.0 ** (_OUTER_BITS[scale_bits] - scale_bits - 1)
        with watch.phase("compile"):
            self._graph = graph_of(subject, "ckks")
            self._maps = squares_form(self._graph)
            self._gain = self._fit_outputs(subject.calibration)
            found = first_convolution(self._graph)
            self._conv = found if found and found.weight.shape[1] == 1 else None
        levels = 2 * len(self._maps) - 1 + (self._conv is not None)
        degree, bits = _parameters(levels, self._slots(), scale_bits)
        with watch.phase("keygen"):
            self._secret = tenseal.context(tenseal.SCHEME_TYPE.CKKS, degree, coeff_mod_bit_sizes=bits)
            self._secret.global_scale = 2**scale_bits
            self._secret.generate_galois_keys()
        public = self._secret.serialize(save_secret_key=False)
        self._public = tenseal.context_from(public)
        self._biases = [tenseal.ckks_vector(self._public, step.bias.tolist()) for step in self._maps]
        self.setup = Setup(
            wall_s=watch.wall_s,
            cpu_s=watch.cpu_s,
            evaluation_keys=None,
            evaluation_keys_sent=len(public),
            parameters={"poly_modulus_degree": degree, "coeff_mod_bit_sizes": bits, "scale_bits": scale_bits},
            libraries=("tenseal",),
        )

    def clear(self, x: npt.NDArray[Any]) -> Reals:
        """The graph over the reals."""
        return evaluate(self._graph, x, exact=False)

    def infer(self, x: npt.NDArray[Any]) -> Sample:
        """One request for the one image that a vector holds."""
        if len(x) != 1:
            raise UnsupportedNetwork(
                "TenSEAL's recipe takes one image.", [Problem("batch", f"Got {len(x)}.", "use batch = 1.")]
            )
        watch = Stopwatch()
        with watch.phase("encrypt"):
            vector, windows = self._encrypt(self._graph.quantize(x) * self._graph.input.scale_array())
            sent = vector.serialize()
        with watch.phase("run"):
            reply = self._run(self._ts.ckks_vector_from(self._public, sent), windows).serialize()
        with watch.phase("decrypt"):
            outputs = self._ts.ckks_vector_from(self._secret, reply).decrypt()
        traffic = {"input": len(sent), "output": len(reply)}
        return Sample(np.asarray(outputs)[None] * self._gain + self._graph.offset, watch.wall_s, watch.cpu_s, traffic)

    def primitives(self) -> dict[str, float]:
        """Not measured for peers."""
        return {}

    def close(self) -> None:
        """Nothing to release."""

    def _fit_outputs(self, calibration: npt.NDArray[Any]) -> float:
        """Shrink the last map so that outputs fit the last prime; the factor."""
        peak = float(np.abs(self.clear(calibration[:200]) - self._graph.offset).max())
        gain: float = max(1.0, 2 * peak / self._headroom)
        self._maps[-1] = Affine(self._maps[-1].matrix / gain, self._maps[-1].bias / gain)
        return gain

    def _encrypt(self, x: Reals) -> tuple[Any, int]:
        if self._conv is None:
            return self._ts.ckks_vector(self._secret, x.ravel().tolist()), 0
        op = self._conv
        padded = np.pad(x[0, 0], [(p, p) for p in op.padding])
        vector, windows = self._ts.im2col_encoding(self._secret, padded.tolist(), *op.weight.shape[2:], op.stride[0])
        return vector, windows

    def _run(self, vector: Any, windows: int) -> Any:
        """The network; biases are encrypted, since `mm` needs its input repeated in all slots.

        Encrypting a vector repeats it; adding a plain one changes the first slots only, and the next product reads on.
        """
        for index, (step, bias) in enumerate(zip(self._maps, self._biases, strict=True)):
            if index:
                vector.square_()
            first_by_windows = not index and self._conv is not None
            vector = self._convolve(vector, windows) if first_by_windows else vector.mm(step.matrix.tolist())
            vector += bias
        return vector

    def _convolve(self, vector: Any, windows: int) -> Any:
        """The first map less its bias by im2col, one kernel at a time."""
        weights = kernels(self._conv) if self._conv else ()
        channels = [vector.conv2d_im2col(kernel[0].tolist(), windows) for kernel in weights]
        return self._ts.CKKSVector.pack_vectors(channels)

    def _slots(self) -> int:
        """Slots from which all maps can read: each reads as far past its last output as its input is long."""
        read = [len(step.matrix) for step in self._maps]
        if self._conv is not None:  # im2col pads each window to a power of two.
            _, height, width = self._graph.types[self._graph.nodes[0].name].shape
            window = int(np.prod(self._conv.weight.shape[2:]))
            read[0] = height * width * (1 << (window - 1).bit_length())
        return sum(read) + len(self._maps[-1].bias)


def _scale_bits(entry: Entry) -> int:
    options = {"scale_bits": _SCALE_BITS, **entry.options}
    if options.keys() != {"scale_bits"} or options["scale_bits"] not in _OUTER_BITS:
        raise UsageError(
            "The peer tenseal can't be run so.",
            [Problem("options", f"Expected scale_bits of 26 or 40, got {dict(entry.options)}.", "correct the case.")],
        )
    return int(options["scale_bits"])


def _parameters(levels: int, slots: int, scale_bits: int) -> tuple[int, list[int]]:
    """The smallest secure ring that holds a prime for each level."""
    bits = [_OUTER_BITS[scale_bits], *[scale_bits] * levels, _OUTER_BITS[scale_bits]]
    for degree, most in _MOST_BITS.items():
        if sum(bits) <= most and slots <= degree // 2:
            return degree, bits
    raise unsuited(f"It needs {slots} slots and {levels} levels.")
