"""From somebody's network to a compiled model: trace, rewrite, hand to a protocol."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from secure_infer import backends, bundle
from secure_infer.backends.base import Backend, Guarantee, Program, Rebuilding, Simulating, Values, require_supported
from secure_infer.bundle import Interface
from secure_infer.client import Client
from secure_infer.cores import in_words, usable_cores
from secure_infer.errors import Problem, UsageError
from secure_infer.graph import passes
from secure_infer.graph.analyse import cost
from secure_infer.graph.graph import Graph, as_array
from secure_infer.graph.interpret import interpret, interpret_real
from secure_infer.graph.text import format_graph
from secure_infer.graph.types import Integers
from secure_infer.wire.transport import InProcess

Mode = Literal["clear", "simulate", "encrypted"]
_LIBRARIES = {
    "tfhe": "concrete-python",
    "ckks": "tenseal",
    "mpc": "crypten",
    "mpc-fss": "cryptography",
    "mpc-spu": "spu",
}


class Compiled:
    """A network compiled for one protocol.

    Attributes:
        graph: The network, as integers.
        program: Server halves and client half.
        interface: What a client knows of it.
    """

    def __init__(self, graph: Graph, interface: Interface, program: Program) -> None:
        self.graph, self.interface, self.program = graph, interface, program
        self._client: Client | None = None
        self._simulation: Callable[[Integers, int], Values] | None = None

    def __repr__(self) -> str:
        kinds = f"{self.interface.input} -> {self.interface.output}"
        return f"Compiled({self.protocol!r}, {kinds}, {len(self.graph.nodes)} operations)"

    @property
    def protocol(self) -> str:
        """Name of the protocol."""
        return self.interface.protocol

    @property
    def guarantee(self) -> Guarantee:
        """Scheme, security, failure probability or error bound, adversary, and what leaks."""
        return self.program.guarantee

    def predict(self, x: npt.ArrayLike, mode: Mode = "encrypted", *, seed: int = 0) -> npt.NDArray[np.float64]:
        """The network's outputs.

        Args:
            x: Reals, shape `(n, *input shape)`.
            mode: "clear" evaluates the network that the protocol computes (exact integers; for CKKS the reals),
                "simulate" adds the protocol's errors without encrypting, "encrypted" makes keys on first use and
                computes on real ciphertexts on this machine.
            seed: Of the errors that "simulate" draws. Under TFHE the library draws them itself, whatever the seed: no
                two runs are the same.

        Returns:
            Reals, shape `(n, *output shape)`.
        """
        if mode == "encrypted":
            return self.client().predict(x)
        units = self.graph.quantize(x)
        if mode == "clear":
            evaluate = interpret if self._backend().exact else interpret_real
            return self.graph.dequantize(evaluate(self.graph, units))
        if mode == "simulate":
            return self.graph.dequantize(self._simulate(units, seed))
        raise UsageError(
            f"There is no mode {mode!r}.",
            [Problem("mode", 'Expected "clear", "simulate" or "encrypted".', "check the spelling.")],
        )

    def _simulate(self, units: Integers, seed: int) -> Values:
        backend = self._backend()
        if not isinstance(backend, Simulating):
            return backend.simulate(self.graph, self.program, units, seed)
        if self._simulation is None:
            self._simulation = backend.simulation(self.program)
        return self._simulation(units, seed)

    def client(self, key_cache: str | Path | None = None) -> Client:
        """A client whose servers run on this machine; made once and kept."""
        if self._client is None:
            half = bundle.pack_client_half(self.interface, self.program.client)
            self._client = Client(InProcess(half, self._backend().servers(self.program.servers)), key_cache)
        return self._client

    def close(self) -> None:
        """End the servers that `predict` started."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def save(self, path: str | Path) -> Path:
        """Write the bundle to one file."""
        return bundle.save(path, self.graph, self.interface, self.program, _versions(self.protocol))

    def report(self) -> str:
        """The network, its cost, the parameters chosen and the guarantee, as text."""
        sizes = {"client half": len(self.program.client)}
        sizes |= {f"server half {party}": len(half) for party, half in enumerate(self.program.servers)}
        sections = {
            "Network": format_graph(self.graph),
            "Cost of one inference": _table(
                {**cost(self.graph).as_dict(), **self.program.counts, **_floor(self.program)}
            ),
            "Parameters": _table(_flat(self.program.parameters)),
            **_tables(self.program.parameters),
            "Bytes": _table(sizes),
            "Guarantee": str(self.guarantee),
        }
        return "\n\n".join(f"{title}\n{text}" for title, text in sections.items() if text)

    def _backend(self) -> Backend:
        return backends.load(self.protocol)


def check(net: Any, protocol: str, input_shape: tuple[int, ...] | None = None) -> list[Problem]:
    """List what a protocol can't evaluate in a network or a model, each thing with its fix.

    Args:
        net: A torch network, or a fitted model of scikit-learn or XGBoost.
        protocol: "clear", "tfhe", "ckks", "mpc", "mpc-fss" or "mpc-spu".
        input_shape: Shape of one input of a network, `(features,)` or `(channels, height, width)`; with it, shapes are
            checked too.

    Returns:
        All problems, in order of evaluation. None, with `input_shape` given, means that each layer can be evaluated;
        `compile` may still find that values grow too wide, or constants and scales that do not fit their layer.

    Raises:
        UsageError: An unknown protocol, something that is neither network nor model, or a shape that is not a tuple.
    """
    from secure_infer.frontends import is_tabular

    if is_tabular(net):
        from secure_infer.frontends import tabular

        return tabular.check(net, protocol)
    from secure_infer.nn.check import check as check_network

    return check_network(net, protocol, input_shape)


def compile(
    net: Any,
    calibration: npt.ArrayLike,
    protocol: str,
    *,
    n_bits: int | Mapping[str, int] | None = None,
    **options: Any,
) -> Compiled:
    """Compile a network for a protocol.

    Args:
        net: A torch network in any mix of float, Brevitas, binarized and polynomial layers; a linear model, trees or
            a perceptron of scikit-learn or XGBoost, alone or after scalers in a pipeline (see `frontends.tabular` for
            what their outputs mean); or a `Graph`.
        calibration: Typical inputs as reals, shape `(n, *input shape)`; they set every range. They do not end up in
            the result, except that for trees the edges between bins are midpoints between values of single features.
        protocol: "clear", "tfhe", "ckks", "mpc", "mpc-fss" or "mpc-spu".
        n_bits: Bits for layers that bring no quantization of their own.
        options: Options of the protocol, see `secure_infer.backends`.

    Returns:
        The compiled model. A softmax at the very end is left to the client: `predict` returns what it would read.

    Raises:
        UsageError: An unknown protocol or option.
        UnsupportedNetwork: Layers that the protocol can't evaluate: all of them, each with its fix.
        InvalidInput: Calibration data that does not fit the network.
        ParametersError: No secure parameters hold the network.
    """
    backend = backends.load(protocol)
    unknown = sorted(set(options) - set(backend.options))
    if unknown:
        known = "; ".join(f"{name}: {text}" for name, text in backend.options.items()) or "none"
        raise UsageError(
            f"{protocol} has no option {', '.join(unknown)}.",
            [Problem(name, "Unknown option.", f"use one of these - {known}.") for name in unknown],
        )
    calibration = as_array(calibration, "calibration")
    graph = _trace(net, calibration, protocol, n_bits)
    graph = passes.optimize(graph, pool_first=protocol.startswith("mpc"))
    require_supported(backend, graph)
    if options.get("keys_of") is not None:
        options["keys_of"] = _half_of(options["keys_of"])
    program = backend.compile(graph, graph.quantize(calibration), options)
    return Compiled(graph, Interface.of(graph, protocol, program.guarantee), program)


def load(path: str | Path) -> Compiled:
    """Read a bundle that `Compiled.save` wrote.

    Raises:
        BundleError: Truncated, altered, or of a newer schema.
    """
    return Compiled(*bundle.load(path))


def rebuild(path: str | Path) -> Compiled:
    """The model of a bundle with halves for the libraries of this machine, which may be of other versions.

    The network, its plan and its ranges stay what they were, so that no calibration data are needed; keys have to be
    made anew. Halves that do not depend on a version are left as they are.

    Raises:
        BundleError: A damaged bundle, or one that can't be rebuilt: then compile its network again.
    """
    graph, interface, program = bundle.load(path)
    backend = backends.load(interface.protocol)
    if isinstance(backend, Rebuilding):
        program = backend.rebuild(program)
    return Compiled(graph, Interface.of(graph, interface.protocol, program.guarantee), program)


def _half_of(model: Any) -> Any:
    """The client half of a compiled model, or of the bundle at a path; anything else is for the backend to refuse."""
    if isinstance(model, Compiled):
        return model.program.client
    return bundle.load(model)[2].client if isinstance(model, str | Path) else model


def _trace(net: Any, calibration: npt.NDArray[Any], protocol: str, n_bits: int | Mapping[str, int] | None) -> Graph:
    if isinstance(net, Graph):
        return net
    from secure_infer.frontends import to_graph

    graph: Graph = to_graph(net, calibration, protocol=protocol, n_bits=n_bits)
    return graph


def _versions(protocol: str) -> dict[str, str]:
    from importlib.metadata import version

    library = _LIBRARIES.get(protocol)
    return {library: version(library)} if library else {}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Parameters without tables, those of a group behind its name."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and not all(isinstance(row, Mapping) for row in value.values()):
            found |= _flat(value, f"{prefix}{name} ")
        elif not _rows(value):
            found[prefix + name] = value
    return found


def _floor(program: Program) -> dict[str, str]:
    """The least time that the counted operations take on this machine's cores, where the backend has a model of it."""
    seconds = program.parameters.get("cpu_seconds_estimate")
    if not seconds:
        return {}
    cores = usable_cores()
    return {"floor": f"{seconds / cores:.3g} s: {seconds:.3g} s of CPU for the look-ups alone, on {in_words(cores)}"}


def _tables(values: Mapping[str, Any]) -> dict[str, str]:
    """Each parameter that is a table, such as one line a layer."""
    return {
        name.replace("_", " ").capitalize(): _columns(_rows(value)) for name, value in values.items() if _rows(value)
    }


def _rows(value: Any) -> list[dict[str, Any]]:
    """The lines of a table: mappings in a sequence, or by name; none if a value is something else."""
    if isinstance(value, Mapping) and value and all(isinstance(row, Mapping) for row in value.values()):
        return [{"": name, **row} for name, row in value.items()]
    if isinstance(value, list | tuple) and value and all(isinstance(row, Mapping) for row in value):
        return [dict(row) for row in value]
    return []


def _columns(rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([_number(row.get(name, "-")) for name in names] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(names))]
    return "\n".join("  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def _table(values: Mapping[str, Any]) -> str:
    width = max(map(len, values), default=0)
    return "\n".join(f"  {name:<{width}}  {_number(value)}" for name, value in values.items())


def _number(value: Any) -> str:
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        return " ".join(value) or "-"
    if isinstance(value, float) and value and not 1e-3 <= abs(value) < 1e6:
        exponent = math.log2(abs(value))
        return f"2^{exponent:.0f}" if exponent.is_integer() else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
