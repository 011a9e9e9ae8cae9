"""The secret arrays of a plan: their shapes, their shares in the two halves, and the masks that hide them for good."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from secure_infer.backends.mpc_fss.lower import Lowered, secret_ring
from secure_infer.backends.mpc_fss.plan import OUTSOURCED, OWNER, Plan, Step
from secure_infer.backends.mpc_fss.ring import Ring, kind_of, low_bits, wire_kind
from secure_infer.backends.parties.streams import KEY_BYTES, Stream, fresh_key
from secure_infer.errors import BundleError, Problem
from secure_infer.graph.types import Shape

Name = tuple[str, str]
"""Of a step, and of an array of it."""
MASKED = ("weight", "thresholds", "table", "coefficients")
"""Arrays whose difference to a lasting mask both servers know."""


@dataclass(frozen=True)
class Secret:
    """A secret array.

    Attributes:
        name: Of its step, and its own.
        shape: Its shape.
        bits: Of the ring that it is shared in.
        mask_bits: Its mask is opened modulo two to this power.
    """

    name: Name
    shape: Shape
    bits: int
    mask_bits: int

    @property
    def kind(self) -> np.dtype[Any]:
        """Type of its elements."""
        return kind_of(self.bits)

    @property
    def mask_kind(self) -> np.dtype[Any]:
        """Type of its mask."""
        return self.kind if self.mask_bits == self.bits else wire_kind(self.mask_bits)


def secrets_of(plan: Plan) -> list[Secret]:
    """All secret arrays of a plan, in the order in which they are drawn and stored."""
    return [secret for step in plan.steps for secret in _of_step(plan, step)]


def _of_step(plan: Plan, step: Step) -> list[Secret]:
    p = step.parameters
    shapes: dict[str, Shape] = {name: tuple(p[name]) for name in MASKED if name in p}
    if "weight" in p:
        shapes["bias"] = (p["weight"][0],)
    if step.kind == "Compare":
        shapes["base"] = (1,)
    if step.kind in ("Max", "Lookup"):
        shapes["fill"] = (1,)
    found = []
    for name, shape in shapes.items():
        bits = secret_ring(plan, step, name)
        found.append(Secret((step.name, name), shape, bits, p["bits"] if name == "thresholds" else bits))
    return found


def split(lowered: Lowered) -> tuple[bytes, bytes]:
    """What each half holds of the secrets.

    Outsourced, party 0 holds a key from which it draws uniform shares, and party 1 what is missing. Under an owner,
    party 0 holds the arrays themselves and party 1 nothing.
    """
    wanted = secrets_of(lowered.plan)
    values = [lowered.secrets[secret.name[0]][secret.name[1]] for secret in wanted]
    if lowered.plan.mode == OWNER:
        return b"".join(map(_little, values)), b""
    key = fresh_key()
    stream = Stream(key)
    rest = [value - stream.elements(secret.shape, secret.kind) for secret, value in zip(wanted, values, strict=True)]
    return key, b"".join(map(_little, rest))


def shares(plan: Plan, party: int, data: bytes) -> dict[Name, Ring]:
    """One party's shares of all secret arrays, from what its half holds.

    Raises:
        BundleError: It is of another length.
    """
    wanted = secrets_of(plan)
    sizes = [math.prod(secret.shape) * secret.kind.itemsize for secret in wanted]
    whole = sum(sizes)
    due = {(OUTSOURCED, 0): KEY_BYTES, (OUTSOURCED, 1): whole, (OWNER, 0): whole, (OWNER, 1): 0}[plan.mode, party]
    if len(data) != due:
        raise BundleError(
            f"The half of party {party} does not fit its plan.",
            [Problem("weights", f"Expected {due} bytes, got {len(data)}.", "fetch or compile the model again.")],
        )
    if (plan.mode, party) == (OUTSOURCED, 0):
        stream = Stream(data)
        return {secret.name: stream.elements(secret.shape, secret.kind) for secret in wanted}
    if (plan.mode, party) == (OWNER, 1):
        return {secret.name: np.zeros(secret.shape, secret.kind) for secret in wanted}
    found, place = {}, 0
    for secret, size in zip(wanted, sizes, strict=True):
        piece = np.frombuffer(data, f"<u{secret.kind.itemsize}", math.prod(secret.shape), place)
        found[secret.name] = piece.astype(secret.kind).reshape(secret.shape)
        place += size
    return found


def masks(plan: Plan, party: int, key: bytes) -> dict[Name, Ring]:
    """One party's part of the lasting masks, drawn from the key that it shares with the dealer.

    Under an owner, the mask of a weight is party 0's alone.
    """
    stream, found = Stream(key), {}
    for secret in secrets_of(plan):
        if secret.name[1] in MASKED:
            drawn = low_bits(stream.elements(secret.shape, secret.mask_kind), secret.mask_bits)
            owned = plan.mode == OWNER and secret.name[1] == "weight"
            found[secret.name] = np.zeros_like(drawn) if owned and party == 1 else drawn
    return found


def masked(plan: Plan, party_shares: Mapping[Name, Ring], party_masks: Mapping[Name, Ring]) -> bytes:
    """What a party tells the other at set-up: its share of every secret minus its mask."""
    return b"".join(_little(part) for part in _differences(plan, party_shares, party_masks).values())


def opened(
    plan: Plan, party_shares: Mapping[Name, Ring], party_masks: Mapping[Name, Ring], theirs: bytes
) -> dict[Name, Ring]:
    """The differences of all secrets and their masks, which both parties may know, from both parties' messages.

    For thresholds it is the other way round: mask minus threshold.
    """
    found, place = {}, 0
    limits = {secret.name: secret.mask_bits for secret in secrets_of(plan)}
    for name, mine in _differences(plan, party_shares, party_masks).items():
        other = np.frombuffer(theirs, f"<u{mine.dtype.itemsize}", mine.size, place).astype(mine.dtype)
        place += mine.nbytes
        found[name] = low_bits(mine + other.reshape(mine.shape), limits[name])
    return found


def masked_bytes(plan: Plan) -> int:
    """Length of what `masked` makes."""
    return sum(
        math.prod(secret.shape) * secret.mask_kind.itemsize for secret in secrets_of(plan) if secret.name[1] in MASKED
    )


def _differences(plan: Plan, party_shares: Mapping[Name, Ring], party_masks: Mapping[Name, Ring]) -> dict[Name, Ring]:
    found = {}
    for secret in secrets_of(plan):
        if secret.name in party_masks:
            mask, share = party_masks[secret.name], party_shares[secret.name].astype(secret.mask_kind)
            difference = mask - share if secret.name[1] == "thresholds" else share - mask
            found[secret.name] = low_bits(difference, secret.mask_bits)
    return found


def _little(values: Ring) -> bytes:
    return np.ascontiguousarray(values, dtype=f"<u{values.dtype.itemsize}").tobytes()
