"""Client and server of a compiled network. Messages are frames with one ciphertext a sample."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from concrete import fhe
from concrete.compiler import ServerProgram

from secure_infer.backends.base import Keys, Values
from secure_infer.backends.tfhe import keys as keyring
from secure_infer.backends.tfhe.segments import checked
from secure_infer.backends.tfhe.signals import ignore_lost_pipes
from secure_infer.errors import BundleError, DecryptionError, InvalidInput, KeyMismatch, ParametersError, Problem
from secure_infer.graph.types import Integers
from secure_infer.wire import frame

CLIENT, SERVER, MESSAGE, REPLY = "tfhe-client", "tfhe-server", "tfhe-message", "tfhe-reply"


class Shapes:
    """What the client half says about inputs and outputs: no weight, nor anything that a prediction does not show.

    Args:
        meta: Header of the client half.
    """

    def __init__(self, meta: Any) -> None:
        self.input_shape = tuple(meta["input"]["shape"])
        self.low, self.high = int(meta["input"]["low"]), int(meta["input"]["high"])
        self.output_shape = tuple(meta["output"]["shape"])
        self.gain, self.parts = (int(meta["output"][name]) for name in ("gain", "parts"))
        center, rest = (np.asarray(meta["output"][name], dtype=np.int64) for name in ("center", "rest"))
        # Older halves have one center for all outputs.
        self.center = center.reshape(self.output_shape) if center.ndim else center
        self.rest = rest.reshape(self.output_shape)

    def check(self, x: Integers) -> Integers:
        """A batch of inputs as the encrypted integers, `x - low`, shape `(n, *input shape)`."""
        x = np.asarray(x)
        problems = []
        if x.dtype.kind not in "bui":
            problems.append(Problem("input", f"Expected integers, got dtype {x.dtype}.", "quantize the input first."))
        if x.shape[1:] != self.input_shape or x.ndim != len(self.input_shape) + 1:
            problems.append(
                Problem(
                    "input",
                    f"Expected shape (n, {', '.join(map(str, self.input_shape))}), got {x.shape}.",
                    "pass a batch; a single sample x is x[None].",
                )
            )
        if not problems and x.size and (x.min() < self.low or x.max() > self.high):
            problems.append(
                Problem(
                    "input",
                    f"Expected values in [{self.low}, {self.high}], got [{x.min()}, {x.max()}].",
                    "quantize the input with the model's scale.",
                )
            )
        if problems:
            raise InvalidInput("The input can't be encrypted.", problems)
        # Concrete reads an array's memory as if it were in order, whatever its strides.
        return np.ascontiguousarray(x, dtype=np.int64) - self.low

    def decode(self, outputs: Sequence[npt.ArrayLike]) -> Integers:
        """Decrypted integers to outputs of the graph, shape `(n, *output shape)`."""
        t = np.asarray(outputs, dtype=np.int64).reshape((len(outputs), *self.output_shape))
        values: Integers = (self.gain * (t + self.center) + self.rest) // self.parts
        return values


class TfheClient:
    """Makes keys, encrypts and decrypts.

    Args:
        half: The client half of a program.
    """

    def __init__(self, half: bytes) -> None:
        received = frame.unpack(half, CLIENT)
        try:
            (self._specs,) = received.parts
            self._shapes = Shapes(received.meta)
            self._circuit, self._key_set = keyring.circuit_id(self._specs), keyring.key_set(self._specs)
            if received.meta["key_set"] != self._key_set:
                raise ValueError("it names another key set than its own")
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise BundleError(
                "The client half can't be read.",
                [Problem("client half", f"{type(error).__name__}: {error}.", "fetch the model again.")],
            ) from error
        self._opened: tuple[Keys, Any, str] | None = None

    def keygen(self) -> Keys:
        """Fresh keys from the operating system's random numbers."""
        return keyring.generate(self._specs)

    def encrypt(self, x: Integers, keys: Keys) -> tuple[bytes, ...]:
        """One message from a batch of integers, shape `(n, *input shape)`.

        Raises:
            InvalidInput: A wrong shape, type or range.
            KeyMismatch: Keys of another model.
        """
        samples = self._shapes.check(x)
        client, name = self._unlock(keys)
        parts = [client.encrypt(sample).serialize() for sample in samples]
        return (frame.pack(MESSAGE, parts, {"circuit": self._circuit, "keys": name}),)

    def decrypt(self, replies: Sequence[bytes], keys: Keys) -> Values:
        """The batch of outputs, int64, shape `(n, *output shape)`.

        Raises:
            DecryptionError: An altered reply, or one that was made under other keys.
            KeyMismatch: Keys of another model.
        """
        client, name = self._unlock(keys)
        try:
            (data,) = replies
            received = frame.unpack(data, REPLY)
        except (ValueError, BundleError) as error:
            raise DecryptionError("The reply can't be read.", getattr(error, "problems", ())) from error
        for label, mine in (("circuit", self._circuit), ("keys", name)):
            if received.meta.get(label) != mine:
                raise DecryptionError(
                    "The reply does not decrypt under these keys.",
                    [Problem("reply", f"It was made for another {label}.", "decrypt with the keys that encrypted.")],
                )
        try:
            values = [fhe.Value.deserialize(checked(part, "reply")) for part in received.parts]
            return self._shapes.decode([client.decrypt(value) for value in values])
        except (RuntimeError, ValueError, BundleError) as error:
            raise DecryptionError(
                "The reply does not decrypt.",
                [Problem("reply", "It does not hold this model's ciphertexts.", "send the request again.")],
            ) from error

    def _unlock(self, keys: Keys) -> tuple[Any, str]:
        if self._opened is None or self._opened[0] is not keys:
            keyset, name = keyring.open_secret(keys.secret, self._key_set)
            client = fhe.Client(fhe.ClientSpecs.deserialize(self._specs))
            client.keys = keyset
            self._opened = (keys, client, name)
        return self._opened[1], self._opened[2]


@dataclass(frozen=True, eq=False)
class EvaluationKeys:
    """A client's evaluation keys, opened.

    Attributes:
        name: Name of the keys.
        keys: The library's own object.
        size: Bytes of memory that they take once they have been used.
    """

    name: str
    keys: Any
    size: int


class TfheServer:
    """Evaluates the circuit; holds weights, never a secret.

    Args:
        half: The server half of a program.

    Raises:
        BundleError: A malformed half, or one that this version of concrete-python builds otherwise.
    """

    def __init__(self, half: bytes) -> None:
        self._program, specs = build(half, simulated=False)
        self._circuit, self._key_set = keyring.circuit_id(specs), keyring.key_set(specs)
        self._expanded = keyring.expanded_bytes(specs)
        self._latest: tuple[bytes, EvaluationKeys] | None = None

    def run(self, message: bytes, evaluation: bytes) -> bytes:
        """Evaluate a batch; the keys used last stay open. Raises what `open` and `answer` do."""
        if self._latest is None or self._latest[0] is not evaluation:
            self._latest = (evaluation, self.open(evaluation))
        return self.answer(message, self._latest[1])

    def open(self, evaluation: bytes) -> EvaluationKeys:
        """Open evaluation keys; concrete expands them when they are used first.

        Raises:
            BundleError: Damaged keys.
            KeyMismatch: Keys of another model.
        """
        keys, name = keyring.open_evaluation(evaluation, self._key_set)
        return EvaluationKeys(name, keys, len(evaluation) + self._expanded)

    def answer(self, message: bytes, keys: EvaluationKeys) -> bytes:
        """Evaluate a batch of ciphertexts, one after another.

        Raises:
            BundleError: An altered message.
            KeyMismatch: A message that does not belong to the keys, or not to this model.
        """
        received = frame.unpack(message, MESSAGE)
        if received.meta.get("circuit") != self._circuit or received.meta.get("keys") != keys.name:
            raise KeyMismatch(
                "The message was not encrypted under these keys.",
                [Problem("message", "It names another circuit or other keys.", "send the keys that belong to it.")],
            )
        try:
            parts = [self._evaluate(part, keys.keys) for part in received.parts]
        except (RuntimeError, ValueError) as error:
            raise BundleError(
                "The message holds no ciphertext of this model.",
                [Problem("message", (str(error).strip() or "no reason given").splitlines()[0] + ".", "encrypt again.")],
            ) from error
        return frame.pack(REPLY, parts, {"circuit": self._circuit, "keys": keys.name})

    def close(self) -> None:
        """Release the keys and the circuit."""
        self._latest = self._program = None

    def _evaluate(self, part: bytes, evaluation_keys: Any) -> bytes:
        value = fhe.Value.deserialize(checked(part, MESSAGE))
        try:
            (result,) = self._program.call([value._inner], evaluation_keys.server_keyset)
        finally:
            ignore_lost_pipes()
        return bytes(result.serialize())


def build(half: bytes, simulated: bool) -> tuple[Any, bytes]:
    """The runnable circuit of a server half, compiled from its MLIR text on this machine, and its specs.

    Raises:
        BundleError: A malformed half, or one that this version of concrete-python builds otherwise.
    """
    received = frame.unpack(half, SERVER)
    try:
        mlir, specs = received.parts
        settings = received.meta["settings"]
    except (KeyError, ValueError) as error:
        raise _unbuildable(error) from error
    server = compiled(mlir, settings, specs, simulated)
    rebuilt = description(server.client_specs)
    program = ServerProgram(server._library, simulated).get_server_circuit(json.loads(rebuilt)["circuits"][0]["name"])
    discard_files(server)
    if not simulated and keyring.circuit_id(rebuilt) != keyring.circuit_id(specs):
        raise BundleError(
            "The server half was compiled by another version of concrete-python.",
            [
                Problem(
                    "server half",
                    f"It was made with {received.meta.get('version')}; this is {fhe.__version__}, which "
                    "chooses other parameters.",
                    "install that version, or make new halves with `secure-infer compile OLD.bundle --out NEW.bundle`.",
                )
            ],
        )
    return program, rebuilt


def compiled(mlir: bytes, settings: Mapping[str, Any], specs: bytes | None, simulated: bool) -> Any:
    """A circuit from its MLIR text.

    Raises:
        BundleError: Text or settings that this version of concrete-python can't use.
    """
    try:
        return fhe.Server.create(mlir.decode(), configuration(**settings, specs=specs), simulated)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _unbuildable(error) from error


def _unbuildable(error: Exception) -> BundleError:
    what = f"{type(error).__name__}: {str(error).strip()[:200]}."
    return BundleError("The server half can't be built.", [Problem("server half", what, "compile the model again.")])


def specs_of(half: bytes) -> bytes:
    """What a client half says about keys, ciphertexts and encodings.

    Raises:
        BundleError: No client half of this backend.
    """
    received = frame.unpack(half, CLIENT)
    if len(received.parts) != 1:
        raise BundleError("This is not a usable client half.")
    return received.parts[0]


def require_keys(circuit: Any, wanted: bytes) -> None:
    """Raise if a circuit that was to use the keys of another one needs keys of its own.

    Raises:
        ParametersError: It does; says in what they differ.
    """
    specs = description(circuit.client.specs)
    if keyring.key_set(specs) == keyring.key_set(wanted):
        return
    discard_files(circuit.server)
    needs, offered = keyring.summary(specs), keyring.summary(wanted)
    raise ParametersError(
        "The keys of the other model do not suffice.",
        [
            Problem(
                "keys_of",
                f"This model needs {needs}; the other one has {offered}.",
                "compile the more demanding model first and give it as keys_of to the other; or bring this one down to "
                "those keys: a greater p_error, fewer keep_bits, fewer bits of weights and activations.",
            )
        ],
    )


def discard_files(server: Any) -> None:
    """Delete what concrete wrote to a temporary folder when it compiled; what is loaded stays usable."""
    shutil.rmtree(server._library.get_output_dir_path(), ignore_errors=True)


def configuration(
    p_error: float,
    security: int,
    dimensions: Sequence[int],
    log_sizes: Sequence[int],
    levels: Sequence[int] = (),
    shared: bool = False,
    specs: bytes | None = None,
) -> Any:
    """Settings of the compiler, from plain values.

    Args:
        p_error: Failure probability of a look-up.
        security: Bits of security.
        dimensions: GLWE dimensions to choose from; empty for any.
        log_sizes: Binary logarithms of polynomial sizes to choose from; empty for any.
        levels: Levels of a bootstrap's decomposition to choose from; empty for any.
        shared: Whether to choose the keys of a given circuit, if they will do.
        specs: Specs of that circuit.

    Raises:
        ValueError: Malformed specs.
    """
    from concrete.fhe.compilation.configuration import RangeRestriction, SecurityLevel

    restriction = RangeRestriction()
    for dimension in dimensions:
        restriction.add_available_glwe_dimension(dimension)
    for size in log_sizes:
        restriction.add_available_glwe_log_polynomial_size(size)
    for level in levels:
        restriction.add_available_pbs_level_count(level)
    return fhe.Configuration(
        p_error=p_error,
        security_level=getattr(SecurityLevel, f"SECURITY_{security}_BITS"),
        compress_evaluation_keys=True,
        compress_input_ciphertexts=True,
        dump_artifacts_on_unexpected_failures=False,
        range_restriction=restriction if dimensions or log_sizes or levels else None,
        keyset_restriction=keyring.restriction(specs) if shared and specs is not None else None,
    )


def description(specs: Any) -> bytes:
    """Keys, ciphertexts and encodings of a circuit as canonical JSON."""
    whole = json.loads(specs.serialize())
    return json.dumps({part: whole[part] for part in ("keyset", "circuits")}, sort_keys=True).encode()
