"""The backend `mpc`: servers compute on shares with CrypTen's protocols; a dealer helps and learns nothing."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from secure_infer.backends.base import Program, require_supported
from secure_infer.backends.mpc.cost import cost
from secure_infer.backends.mpc.guarantee import guarantee
from secure_infer.backends.mpc.plan import DEALER, FIRST_PARTY, Plan, plan
from secure_infer.backends.parties.client import MOST_PARTIES, PARTIES, ClientHalf, SharingClient
from secure_infer.backends.parties.halves import parts_of, unpack_all
from secure_infer.backends.parties.seam import Half, Setup
from secure_infer.errors import BundleError, Problem, UnsupportedNetwork, UsageError, missing_extra
from secure_infer.graph import OPS, Polynomial, interpret, store
from secure_infer.graph.graph import Graph
from secure_infer.graph.text import underline
from secure_infer.graph.types import ACCUMULATOR_BITS, Integers
from secure_infer.wire import frame

if TYPE_CHECKING:
    from secure_infer.backends.parties.channel import Channel
    from secure_infer.backends.parties.session import PartyRole

KIND, CLIENT_KIND = "mpc-server", "mpc-client"
DEFAULT_TIMEOUT = 60.0
_GREATEST_SHIFT = 62
_YES = (True, "true", "True", "yes", "1")


class MpcBackend:
    """The backend `mpc`."""

    name = "mpc"
    ops = frozenset(OPS)
    exact = True
    parties = PARTIES
    options: Mapping[str, str] = {
        "provider": 'Who deals correlated randomness: "dealer" (default), a third process that sees no data, or '
        '"first-party", where party 0 deals and can read the input; for development, with insecure_dev.',
        "insecure_dev": "Set to true to accept provider=first-party, which protects nothing from party 0.",
        "parties": f"How many servers compute on shares, {PARTIES} (default) or {MOST_PARTIES}: of three, any two "
        "together learn nothing of the input.",
        "timeout": f"Seconds that a party waits for another before it gives up; {DEFAULT_TIMEOUT:g} if not given.",
    }

    def compile(self, graph: Graph, calibration: Integers, options: Mapping[str, Any]) -> Program:
        """Split a graph into a plan that all parties know and weights that party 0 alone holds.

        Args:
            graph: Any network: every operation is supported, exactly.
            calibration: Not used: the ring holds every accumulator that a graph may have.
            options: See `options`.

        Raises:
            UsageError: An unknown option or value, or `provider="first-party"` without `insecure_dev=True`.
            UnsupportedNetwork: Numbers too wide for the ring.
            MissingExtra: CrypTen is not installed.
        """
        require_crypten()
        provider, timeout, parties = _options(options, self.options)
        require_supported(self, graph)
        _require_fit(graph)
        public = plan(graph, os.urandom(16).hex(), provider, timeout, parties)
        data = public.to_bytes()
        ends = graph.input.shape, graph.input.low, graph.input.high, public.output_shape
        client = ClientHalf(CLIENT_KIND, public.model, *ends, public.output_bits, parties)
        spent = asdict(cost(public))
        sizes = {"bytes_between_parties": spent.pop("bytes"), "bytes_from_dealer": spent.pop("dealer_bytes")}
        return Program(
            servers=(
                frame.pack(KIND, [data, *store.to_bytes(graph)], {"party": 0}),
                *(frame.pack(KIND, [data], {"party": party}) for party in range(1, parties)),
            ),
            client=client.pack(),
            guarantee=guarantee(provider, parties),
            parameters={
                **{"ring_bits": 64, "provider": provider, "parties": parties, "timeout": timeout, "tls": "1.3"},
                **sizes,
            },
            counts={**spent, "requests": 1},
        )

    def client(self, half: bytes) -> SharingClient:
        """The client role; it needs neither CrypTen nor torch."""
        return SharingClient(ClientHalf.unpack(half, CLIENT_KIND))

    def servers(self, halves: Sequence[bytes]) -> Sequence[PartyRole]:
        """Start the parties and the dealer in processes of their own, and share the weights between the parties.

        Raises:
            BundleError: A half that is malformed, or one of another party than 0 that holds more than the plan.
            MissingExtra: CrypTen is not installed.
            ProtocolError: A process does not start.
        """
        require_crypten()
        from secure_infer.backends.parties.session import start

        parts, public = unpack_halves(halves)
        return start(setup(public.provider, public.timeout, public.parties), parts)

    def simulate(self, graph: Graph, program: Program, x: Integers, seed: int) -> Integers:
        """The interpreter's result: the protocol computes modulo 2^64 without truncation, so it is exact."""
        return interpret(graph, x)

    def primitives(self, program: Program) -> Mapping[str, float]:
        """Seconds for one round, one 16-bit comparison and one multiplication, measured between processes now."""
        require_crypten()
        from secure_infer.backends.parties.session import measure

        _, public = unpack_halves(program.servers)
        return measure(setup(public.provider, public.timeout, public.parties))

    def party_half(self, half: bytes, party: int) -> Half:
        """One party's half, unpacked.

        Raises:
            BundleError: See `unpack_half`.
        """
        parts, public = unpack_half(half, party)
        started = setup(public.provider, public.timeout, public.parties)
        return Half(started, public.model, public.input_shape, parts)

    def deal(self, channels: Mapping[str, Channel], ready: Callable[[], None], folder: Path | None) -> NoReturn:
        """Be the dealer until party 0 is gone, which is a ProtocolError."""
        require_crypten()
        from secure_infer.backends.mpc.party import deal

        deal(channels, ready, folder)


def setup(provider: str, timeout: float, parties: int = PARTIES) -> Setup:
    """How the processes of a session are started."""
    dealt = provider == DEALER
    return Setup("secure_infer.backends.mpc.party", timeout, dealt, parties=parties, insecure=not dealt)


def unpack_halves(halves: Sequence[bytes]) -> tuple[list[tuple[bytes, ...]], Plan]:
    """The parts of all halves, and the plan they share.

    Raises:
        BundleError: Not the halves of one model, weights in another half than party 0's, or weights that do not fit the
            plan.
    """
    return unpack_all(halves, KIND, unpack_half, lambda public: public.parties)


def unpack_half(half: bytes, party: int) -> tuple[tuple[bytes, ...], Plan]:
    """The parts of one party's half, and its plan.

    Raises:
        BundleError: Another party's half, weights in another half than party 0's, or weights that do not fit the plan.
    """
    parts = parts_of(half, KIND, party, 1 if party else 3)
    public = Plan.from_bytes(parts[0])
    if party == 0:
        graph = store.from_bytes(*parts[1:])
        if plan(graph, public.model, public.provider, public.timeout, public.parties).to_bytes() != parts[0]:
            raise BundleError(
                "The weights of party 0 do not fit the plan.",
                [Problem(KIND, "They belong to another network.", "fetch or compile the model again.")],
            )
    return parts, public


def require_crypten() -> None:
    """Make sure that what a party needs is installed.

    Raises:
        MissingExtra: It is not.
    """
    for module in ("torch", "crypten", "cryptography"):
        if importlib.util.find_spec(module) is None:
            raise missing_extra("mpc", "mpc", module)


def _options(given: Mapping[str, Any], known: Mapping[str, str]) -> tuple[str, float, int]:
    """Provider, timeout and the number of parties; every problem is listed."""
    problems = [
        Problem(name, "There is no such option.", f"use {', '.join(known)}.") for name in given if name not in known
    ]
    provider = given.get("provider", DEALER)
    if provider not in (DEALER, FIRST_PARTY):
        problems.append(Problem("provider", f"Expected {DEALER} or {FIRST_PARTY}, got {provider!r}.", "use dealer."))
    if provider == FIRST_PARTY and given.get("insecure_dev", False) not in _YES:
        problems.append(
            Problem(
                "provider",
                "Under first-party, party 0 makes all masks and can read every input.",
                "use the dealer; to try out code on your own data, add insecure_dev=True.",
            )
        )
    try:
        timeout = float(given.get("timeout", DEFAULT_TIMEOUT))
    except (TypeError, ValueError):
        timeout = 0.0
    if not 0 < timeout <= 86400:
        problems.append(Problem("timeout", f"Expected seconds in (0, 86400], got {given['timeout']!r}.", "use 60."))
    parties = str(given.get("parties", PARTIES))
    if parties not in map(str, range(PARTIES, MOST_PARTIES + 1)):
        what = f"Expected {PARTIES} or {MOST_PARTIES}, got {given['parties']!r}."
        problems.append(Problem("parties", what, f"use {PARTIES}."))
    if problems:
        raise UsageError("The options of mpc can't be used.", problems)
    return provider, timeout, int(parties)


def _require_fit(graph: Graph) -> None:
    problems = [
        Problem(node.name, f"It shifts by {node.op.shift} bits.", f"shift by at most {_GREATEST_SHIFT}.")
        for node in graph.nodes
        if isinstance(node.op, Polynomial) and node.op.shift > _GREATEST_SHIFT
    ]
    if graph.input.bits > ACCUMULATOR_BITS:
        problems.append(Problem("input", f"It has {graph.input.bits} bits.", f"use at most {ACCUMULATOR_BITS}."))
    if problems:
        raise UnsupportedNetwork("The network does not fit the ring of mpc.", problems, underline(graph, problems))
