"""What `mpc` promises, with two parties or three: who may collude with whom before the input is known."""

from __future__ import annotations

from secure_infer.backends.base import Guarantee
from secure_infer.backends.mpc.plan import DEALER


def guarantee(provider: str, parties: int) -> Guarantee:
    """The guarantee under a provider of correlated randomness, with two or three parties."""
    dealt, three = provider == DEALER, parties > 2
    return Guarantee(
        scheme=f"{parties}-party additive secret sharing over Z_2^64 (CrypTen 0.4.1), "
        + ("trusted dealer" if dealt else "first-party provider, for development only"),
        security_bits=128 if dealt else None,
        failure_probability=0.0,
        error_bound=None,
        adversary=f"semi-honest: {_adversary(three)}, curious but following the protocol; "
        "and whoever reads the traffic between them, which is mutually authenticated TLS 1.3"
        if dealt
        else "none: party 0 can read the input",
        leaks=(
            "the network's structure to everybody but the client: operations, shapes, strides, gains of additions, "
            "shifts, thresholds per activation, and whether values fit 8, 16, 32 or 64 bits",
            f"the batch size and the time of each query to {'all' if three else 'both'} parties and the dealer",
            "the outputs to the client, which can ask again and again: a model can be learned from its answers",
            "weights to party 0, which owns them; to nobody else",
        ),
        trust=(_collusion(three) if dealt else _NOTHING, _together(three), *_REST),
    )


def _adversary(three: bool) -> str:
    if three:
        return "any two of party 0, party 1 and party 2 together, or the dealer alone"
    return "one of party 0, party 1 and the dealer"


def _collusion(three: bool) -> str:
    if three:
        return (
            "the dealer colludes with no party, and the three parties do not all collude: the dealer with any one of "
            "them, or all three together, can read the input; the dealer with party 1 or party 2 the weights as well"
        )
    return "party 0, party 1 and the dealer do not collude: any two of them together can read the input"


def _together(three: bool) -> str:
    roles, shares = ("four", "all") if three else ("three", "both")
    return f"servers() starts all {roles} on one machine, for trials: whoever runs that machine holds {shares} shares"


_NOTHING = "NOT SECURE: party 0 deals its own randomness and can read every input and every activation"
_REST = (
    "no party deviates from the protocol: there are no checks against an active adversary",
    "research grade: CrypTen is dormant and not audited, and this use of it has had no outside review",
)
