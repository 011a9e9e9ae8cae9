"""The backend `mpc-fss`: two servers compute on shares, a dealer prepares randomness; comparisons take one round."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from secure_infer.backends.base import Guarantee, Program, require_supported
from secure_infer.backends.mpc_fss.cost import cost
from secure_infer.backends.mpc_fss.lower import Fusing, lower
from secure_infer.backends.mpc_fss.plan import MODES, OUTSOURCED, OWNER, Plan
from secure_infer.backends.mpc_fss.secrets import masked_bytes, shares, split
from secure_infer.backends.parties.client import PARTIES, ClientHalf, SharingClient
from secure_infer.backends.parties.halves import parts_of, unpack_all
from secure_infer.backends.parties.seam import Half, Setup
from secure_infer.errors import Problem, UsageError, missing_extra
from secure_infer.graph import OPS, interpret
from secure_infer.graph.graph import Graph
from secure_infer.graph.types import Integers
from secure_infer.wire import frame

if TYPE_CHECKING:
    from secure_infer.backends.parties.channel import Channel
    from secure_infer.backends.parties.session import PartyRole

KIND, CLIENT_KIND = "mpc-fss-server", "mpc-fss-client"
DEFAULT_TIMEOUT = 60.0
DEFAULT_AHEAD = 16
DEFAULT_FUSE = 1 << 20
DEFAULT_ROUND_TRIP = 1.0
_SEED_BITS = 126


class MpcFssBackend:
    """The backend `mpc-fss`."""

    name = "mpc-fss"
    ops = frozenset(OPS)
    exact = True
    parties = PARTIES
    options: Mapping[str, str] = {
        "mode": f'"{OUTSOURCED}" (default): both servers hold shares of the weights, neither knows them; or "{OWNER}": '
        "party 0 owns the weights and holds them in the clear, which takes fewer bytes.",
        "ahead": f"Inferences for which correlations are kept in stock; {DEFAULT_AHEAD} if not given.",
        "round_trip": "Milliseconds between the two servers there and back: an activation and the linear layer after "
        "it become one step, a round less for longer comparisons, where that is faster; "
        f"{DEFAULT_ROUND_TRIP:g} if not given.",
        "fuse": "Bytes of correlations that an inference may take for such a step at most; "
        f"{DEFAULT_FUSE} if not given, 0 for never.",
        "timeout": f"Seconds that a party waits for another before it gives up; {DEFAULT_TIMEOUT:g} if not given.",
    }

    def compile(self, graph: Graph, calibration: Integers, options: Mapping[str, Any]) -> Program:
        """Split a graph into a public plan and two halves of the weights.

        Args:
            graph: Any network: every operation is supported, exactly.
            calibration: Not used: rings hold every value that the graph may have.
            options: See `options`.

        Raises:
            UsageError: An unknown option or value.
            UnsupportedNetwork: Numbers that no ring holds, or tables and polynomials that are too large.
            MissingExtra: The library for AES is not installed.
        """
        _require_cryptography()
        chosen = _options(options, self.options)
        require_supported(self, graph)
        fusing = Fusing(chosen["fuse"], chosen["round_trip"] / 1000)
        lowered = lower(graph, os.urandom(16).hex(), chosen["mode"], chosen["timeout"], chosen["ahead"], fusing)
        plan, data = lowered.plan, lowered.plan.to_bytes()
        ends = graph.input.shape, graph.input.low, graph.input.high, graph.output_type.shape
        client = ClientHalf(CLIENT_KIND, plan.model, *ends, plan.rings[plan.output])
        spent = asdict(cost(plan))
        sizes = {"bytes_between_parties": spent.pop("bytes"), "bytes_from_dealer": spent.pop("dealt_bytes")}
        once = {"bytes_once": 2 * masked_bytes(plan)}
        return Program(
            servers=tuple(
                frame.pack(KIND, [data, part], {"party": party}) for party, part in enumerate(split(lowered))
            ),
            client=client.pack(),
            guarantee=_guarantee(plan.mode),
            parameters={"ring_bits": sorted(set(plan.rings.values())), **chosen, "tls": "1.3", **sizes, **once},
            counts={**spent, "requests": 1},
        )

    def client(self, half: bytes) -> SharingClient:
        """The client role; it needs numpy alone."""
        return SharingClient(ClientHalf.unpack(half, CLIENT_KIND))

    def servers(self, halves: Sequence[bytes]) -> Sequence[PartyRole]:
        """Start both servers and the dealer in processes of their own, with a stock of correlations in memory.

        Raises:
            BundleError: A half that is malformed, or that holds more than it may.
            MissingExtra: The library for AES is not installed.
            ProtocolError: A process does not start.
        """
        _require_cryptography()
        from secure_infer.backends.parties.session import start

        parts, plan = unpack_halves(halves)
        return start(_setup(plan), parts)

    def simulate(self, graph: Graph, program: Program, x: Integers, seed: int) -> Integers:
        """The interpreter's result: the protocol is exact."""
        return interpret(graph, x)

    def primitives(self, program: Program) -> Mapping[str, float]:
        """Seconds for a message there and back, a comparison's block, a multiplication and an empty request, now."""
        _require_cryptography()
        from secure_infer.backends.parties.session import measure

        _, plan = unpack_halves(program.servers)
        return measure(_setup(plan))

    def party_half(self, half: bytes, party: int) -> Half:
        """One party's half, unpacked.

        Raises:
            BundleError: See `unpack_half`.
        """
        parts, plan = unpack_half(half, party)
        return Half(_setup(plan), plan.model, plan.input_shape, parts)

    def deal(self, channels: Mapping[str, Channel], ready: Callable[[], None], folder: Path | None) -> NoReturn:
        """Be the dealer until a party is gone, which is a ProtocolError."""
        _require_cryptography()
        from secure_infer.backends.mpc_fss.party import deal

        deal(channels, ready, folder)


def _setup(plan: Plan) -> Setup:
    return Setup("secure_infer.backends.mpc_fss.party", plan.timeout, stocked=True)


def unpack_halves(halves: Sequence[bytes]) -> tuple[list[tuple[bytes, ...]], Plan]:
    """The parts of both halves, and the plan they share.

    Raises:
        BundleError: Not two halves of one model.
    """
    return unpack_all(halves, KIND, unpack_half)


def unpack_half(half: bytes, party: int) -> tuple[tuple[bytes, ...], Plan]:
    """The parts of one party's half, and its plan.

    Raises:
        BundleError: Another party's half, or shares of another length than the plan says.
    """
    parts = parts_of(half, KIND, party, 2)
    plan = Plan.from_bytes(parts[0])
    shares(plan, party, parts[1])
    return parts, plan


def _require_cryptography() -> None:
    if importlib.util.find_spec("cryptography") is None:
        raise missing_extra("mpc-fss", "mpc-fss", "cryptography")


def _options(given: Mapping[str, Any], known: Mapping[str, str]) -> dict[str, Any]:
    """All options, checked; every problem is listed."""
    problems = [
        Problem(name, "There is no such option.", f"use {', '.join(known)}.") for name in given if name not in known
    ]
    mode = given.get("mode", OUTSOURCED)
    if mode not in MODES:
        problems.append(Problem("mode", f"Expected {' or '.join(MODES)}, got {mode!r}.", f"use {OUTSOURCED}."))
    ahead, timeout, fuse, round_trip = 0, 0.0, -1, -1.0
    with contextlib.suppress(TypeError, ValueError):
        ahead = int(given.get("ahead", DEFAULT_AHEAD))
    if not 0 < ahead <= 1 << 20:
        problems.append(Problem("ahead", f"Expected 1 to {1 << 20}, got {given['ahead']!r}.", "use 16."))
    with contextlib.suppress(TypeError, ValueError):
        timeout = float(given.get("timeout", DEFAULT_TIMEOUT))
    if not 0 < timeout <= 86400:
        problems.append(Problem("timeout", f"Expected seconds in (0, 86400], got {given['timeout']!r}.", "use 60."))
    with contextlib.suppress(TypeError, ValueError):
        fuse = int(given.get("fuse", DEFAULT_FUSE))
    if not 0 <= fuse <= 1 << 30:
        problems.append(Problem("fuse", f"Expected bytes in [0, {1 << 30}], got {given['fuse']!r}.", "use 0."))
    with contextlib.suppress(TypeError, ValueError):
        round_trip = float(given.get("round_trip", DEFAULT_ROUND_TRIP))
    if not 0 <= round_trip <= 1e6:
        what = f"Expected milliseconds in [0, 1000000], got {given['round_trip']!r}."
        problems.append(Problem("round_trip", what, "use 0.3 in one building."))
    if problems:
        raise UsageError("The options of mpc-fss can't be used.", problems)
    return {"mode": mode, "timeout": timeout, "ahead": ahead, "fuse": fuse, "round_trip": round_trip}


def _guarantee(mode: str) -> Guarantee:
    outsourced = mode == OUTSOURCED
    return Guarantee(
        scheme="2-party additive secret sharing over Z_2^16, Z_2^32 and Z_2^64 with function secret sharing "
        "(distributed comparison functions on AES-128), trusted dealer",
        security_bits=_SEED_BITS,
        failure_probability=0.0,
        error_bound=None,
        adversary="semi-honest: one of party 0, party 1 and the dealer, curious but following the protocol; "
        "and whoever reads the traffic between them, which is mutually authenticated TLS 1.3",
        leaks=(
            "the network's structure to everybody but the client: operations, shapes, strides, gains of additions, "
            "shifts, thresholds per activation, the bits in which values are compared and the rings that hold them",
            "the batch size and the time of each query to both parties; how many are asked to the dealer",
            "the outputs to the client, which can ask again and again: a model can be learned from its answers",
            "weights to whoever compiles the model, and to nobody else"
            if outsourced
            else "weights to party 0, which owns them; to nobody else",
        ),
        trust=(
            "party 0, party 1 and the dealer do not collude: any two of them together can read the input"
            + (" and the weights" if outsourced else ""),
            "servers() starts all three on one machine, for trials: whoever runs that machine holds both shares",
            "no party deviates from the protocol: there are no checks against an active adversary",
            "research grade: written here from the papers, tested against a slow reference, reviewed by nobody outside",
        ),
    )
