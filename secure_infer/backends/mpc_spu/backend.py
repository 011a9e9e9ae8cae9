"""The backend `mpc-spu`: three servers of which no two collude, or two, compute on shares through SPU; nobody deals."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from secure_infer.backends.base import Guarantee, Program, require_supported
from secure_infer.backends.mpc_spu.plan import ABY3, CHEETAH, PARTIES, Plan, lower, split, words_of
from secure_infer.backends.parties.client import ClientHalf, SharingClient
from secure_infer.backends.parties.halves import parts_of, unpack_all
from secure_infer.backends.parties.seam import Half, Setup
from secure_infer.errors import Problem, UsageError, missing_extra
from secure_infer.graph import OPS, interpret
from secure_infer.graph.graph import Graph
from secure_infer.graph.types import Integers
from secure_infer.wire import frame

if TYPE_CHECKING:
    from secure_infer.backends.parties.session import PartyRole

KIND, CLIENT_KIND = "mpc-spu-server", "mpc-spu-client"
DEFAULT_TIMEOUT = 60.0


class MpcSpuBackend:
    """The backend `mpc-spu`."""

    name = "mpc-spu"
    ops = frozenset(OPS)
    exact = True
    parties = PARTIES[ABY3]
    options: Mapping[str, str] = {
        "scheme": f'"{ABY3}" (default): three parties, of which no two may collude; or "{CHEETAH}": two parties, which '
        "takes seconds and megabytes.",
        "timeout": f"Seconds that a party waits for another before it gives up; {DEFAULT_TIMEOUT:g} if not given.",
    }

    def compile(self, graph: Graph, calibration: Integers, options: Mapping[str, Any]) -> Program:
        """Split a graph into a public plan and shares of all that is secret in it, so that no party holds the weights.

        Args:
            graph: A network whose values fit a ring of 64 bits: every operation is supported, exactly.
            calibration: Not used: the ring holds every value that the graph may have.
            options: See `options`.

        Raises:
            UsageError: An unknown option or value.
            UnsupportedNetwork: Numbers that no ring holds, or tables that are too large.
            MissingExtra: SPU is not installed.
        """
        _require_spu()
        scheme, timeout = _options(options, self.options)
        require_supported(self, graph)
        plan, secrets = lower(graph, os.urandom(16).hex(), scheme, timeout)
        data = plan.to_bytes()
        ends = graph.input.shape, graph.input.low, graph.input.high, graph.output_type.shape
        client = ClientHalf(CLIENT_KIND, plan.model, *ends, plan.ring, PARTIES[scheme])
        return Program(
            servers=tuple(
                frame.pack(KIND, [data, words], {"party": party}) for party, words in enumerate(split(plan, secrets))
            ),
            client=client.pack(),
            guarantee=_guarantee(scheme),
            parameters={"scheme": scheme, "ring_bits": plan.ring, "timeout": timeout, "tls": "1.3"},
            counts={"requests": 1},
        )

    def client(self, half: bytes) -> SharingClient:
        """The client role; it needs numpy alone."""
        return SharingClient(ClientHalf.unpack(half, CLIENT_KIND))

    def servers(self, halves: Sequence[bytes]) -> Sequence[PartyRole]:
        """Start all parties in processes of their own, each with its shares of the weights.

        Raises:
            BundleError: A half that is malformed, or that holds more than it may.
            MissingExtra: SPU is not installed.
            ProtocolError: A process does not start.
        """
        _require_spu()
        from secure_infer.backends.parties.session import start

        parts, plan = unpack_halves(halves)
        return start(_setup(plan), parts)

    def simulate(self, graph: Graph, program: Program, x: Integers, seed: int) -> Integers:
        """The interpreter's result: the protocol is exact."""
        return interpret(graph, x)

    def primitives(self, program: Program) -> Mapping[str, float]:
        """None: SPU tells of no operations that a floor could be made of."""
        return {}

    def party_half(self, half: bytes, party: int) -> Half:
        """One party's half, unpacked.

        Raises:
            BundleError: See `unpack_half`.
        """
        parts, plan = unpack_half(half, party)
        return Half(_setup(plan), plan.model, plan.input_shape, parts)


def _setup(plan: Plan) -> Setup:
    module, parties = "secure_infer.backends.mpc_spu.party", PARTIES[plan.scheme]
    return Setup(module, plan.timeout, dealer=False, settings={"seconds": plan.timeout}, parties=parties)


def unpack_halves(halves: Sequence[bytes]) -> tuple[list[tuple[bytes, ...]], Plan]:
    """The parts of all halves, and the plan they share.

    Raises:
        BundleError: Not the halves of one model.
    """
    return unpack_all(halves, KIND, unpack_half, lambda plan: PARTIES[plan.scheme])


def unpack_half(half: bytes, party: int) -> tuple[tuple[bytes, ...], Plan]:
    """The parts of one party's half, and its plan.

    Raises:
        BundleError: Another party's half, or shares of another length than the plan says.
    """
    parts = parts_of(half, KIND, party, 2)
    plan = Plan.from_bytes(parts[0])
    words_of(plan, party, parts[1])
    return parts, plan


def _require_spu() -> None:
    for module in ("spu", "cryptography"):
        if importlib.util.find_spec(module) is None:
            raise missing_extra("mpc-spu", "spu", module)


def _options(given: Mapping[str, Any], known: Mapping[str, str]) -> tuple[str, float]:
    """Scheme and timeout; every problem is listed."""
    problems = [
        Problem(name, "There is no such option.", f"use {', '.join(known)}.") for name in given if name not in known
    ]
    scheme = given.get("scheme", ABY3)
    if scheme not in PARTIES:
        fix = f"use {ABY3}; semi2k is not offered, since its default lets party 0 deal and so read everything."
        problems.append(Problem("scheme", f"Expected {' or '.join(PARTIES)}, got {scheme!r}.", fix))
    timeout = 0.0
    with contextlib.suppress(TypeError, ValueError):
        timeout = float(given.get("timeout", DEFAULT_TIMEOUT))
    if not 0 < timeout <= 86400:
        problems.append(Problem("timeout", f"Expected seconds in (0, 86400], got {given['timeout']!r}.", "use 60."))
    if problems:
        raise UsageError("The options of mpc-spu can't be used.", problems)
    return str(scheme), timeout


def _guarantee(scheme: str) -> Guarantee:
    three = scheme == ABY3
    parties = "party 0, party 1 and party 2" if three else "party 0 and party 1"
    return Guarantee(
        scheme="3-party replicated secret sharing (ABY3), honest majority, no dealer, by SPU"
        if three
        else "2-party secret sharing with lattice encryption and oblivious transfer (Cheetah), no dealer, by SPU",
        security_bits=128,
        failure_probability=0.0,
        error_bound=None,
        adversary=f"semi-honest: one of {parties}, curious but following the protocol; "
        "and whoever reads the traffic between them, which is mutually authenticated TLS 1.3",
        leaks=(
            "the network's structure to every party: operations, shapes, strides, gains of additions, shifts and the "
            "number of thresholds of an activation",
            "the batch size and the time of each query to every party",
            "the outputs to the client, which can ask again and again: a model can be learned from its answers",
            "weights to whoever compiles the model, and to nobody else",
        ),
        trust=(
            f"{parties} do not collude: "
            + ("any two of them can read the input and the weights" if three else "both together can read everything"),
            "servers() starts all parties on one machine, for trials: whoever runs that machine holds all shares",
            "no party deviates from the protocol: there are no checks against an active adversary",
            "inside a run, protocols and randomness are SPU's: AES-128 in counter mode, from seeds of 128 bits (by its "
            "sources); shares of inputs and weights are made here, from the operating system's randomness",
            "research grade: this use of SPU has had no outside review",
        ),
    )
