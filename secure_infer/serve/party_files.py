"""What a role of a protocol of several parties keeps in its folder: identity, peers' certificates, half of the model.

identity.key    private key, mode 0600; made where the role runs, and never copied
identity.pem    its certificate, for the other roles
peers/a.pem ... certificates of the other roles, which are pinned
model.party     a party's half of the model and the public client half; the dealer has none
protocol        name of the protocol that the dealer deals for; `mpc` if it is absent
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from secure_infer import backends, bundle, files
from secure_infer.bundle import Interface
from secure_infer.errors import BundleError, Problem, UsageError, missing_extra
from secure_infer.wire import frame

if TYPE_CHECKING:
    from secure_infer.backends.parties.channel import Identity
    from secure_infer.backends.parties.seam import Setup, SeveralParties

ROLES: Mapping[str, str] = {"a": "party 0", "b": "party 1", "c": "party 2", "dealer": "dealer"}
"""Short names of the roles, in commands and file names; most protocols have no third party."""
KIND = "party-half"
KEY, CERTIFICATE, PEERS, MODEL = "identity.key", "identity.pem", "peers", "model.party"
PROTOCOL, DEFAULT_PROTOCOL = "protocol", "mpc"
SCHEMA = 1


@dataclass(frozen=True, eq=False)
class PartyHalf:
    """One party's half of a model, as its host holds it.

    Attributes:
        interface: What clients know of the model.
        client_half: The public half, as it is handed to clients.
        server: The party's own half.
        party: Its number.
        parties: How many there are.
    """

    interface: Interface
    client_half: bytes
    server: bytes
    party: int
    parties: int

    def pack(self) -> bytes:
        """The half as a frame."""
        meta = {"schema": SCHEMA, "party": self.party, "parties": self.parties}
        return frame.pack(KIND, [self.client_half, self.server], meta)

    @classmethod
    def unpack(cls, data: bytes) -> PartyHalf:
        """The half that `pack` wrote.

        Raises:
            BundleError: Damaged, or of a newer schema.
        """
        received = frame.unpack(data, KIND)
        meta, parts = received.meta, received.parts
        numbers = [meta.get(name) for name in ("schema", "party", "parties")]
        sound = all(type(number) is int for number in numbers) and meta["schema"] == SCHEMA
        if not sound or not 0 <= meta["party"] < meta["parties"] or len(parts) != 2:
            raise BundleError(
                "This party's half can't be used.",
                [Problem(KIND, "Its header is malformed, or of a newer version.", "split the bundle again.")],
            )
        interface, _ = bundle.unpack_client_half(parts[0])
        return cls(interface, parts[0], parts[1], meta["party"], meta["parties"])


def split(path: str | Path) -> list[PartyHalf]:
    """What each party may have of a bundle.

    Raises:
        UsageError: Its protocol has one server only.
        BundleError: It is damaged.
    """
    _, interface, program = bundle.load(path)
    parties = len(program.servers)
    if parties == 1:
        raise UsageError(
            f"{path} is for one server.",
            [Problem(interface.protocol, "It has no parties.", "serve the bundle itself with `secure-infer serve`.")],
        )
    half = bundle.pack_client_half(interface, program.client)
    return [PartyHalf(interface, half, server, party, parties) for party, server in enumerate(program.servers)]


def make_identity(folder: str | Path, role: str, days: float = 365) -> Path:
    """Make a role's key and self-signed certificate in its folder, unless it has them; returns the certificate's path.

    Raises:
        MissingExtra: The library that makes keys is not installed.
    """
    try:
        from secure_infer.backends.parties.channel import new_identity
    except ModuleNotFoundError as error:
        raise missing_extra("mpc", "mpc", error.name or "cryptography") from error
    place = Path(folder)
    if not (place / KEY).exists():
        identity = new_identity(ROLES[role], days)
        files.write(place / CERTIFICATE, identity.certificate)
        files.write(place / KEY, identity.key, mode=files.PRIVATE)
    return place / CERTIFICATE


def setup_of(half: PartyHalf) -> Setup:
    """How the roles of a model are started."""
    backend = cast("SeveralParties", backends.load(half.interface.protocol))
    return backend.party_half(half.server, half.party).setup


def roles_of(folder: str | Path, role: str, peers: Collection[str]) -> tuple[int, bool]:
    """How many parties there are, and whether there is a dealer, as a role can tell from its folder.

    A party's model says so; the dealer, and a party without its model, go by the certificates that are pinned.

    Args:
        folder: The role's.
        role: Its full name.
        peers: Full names of the roles whose certificates are pinned.

    Raises:
        BundleError: The party's half is damaged.
    """
    path = Path(folder) / MODEL
    if role != ROLES["dealer"] and path.exists():
        setup = setup_of(PartyHalf.unpack(files.read(path)))
        return setup.parties, setup.dealer
    return (3 if ROLES["c"] in {role, *peers} else 2), True


def provision(path: str | Path, out: str | Path, days: float = 365) -> dict[str, Path]:
    """Make all roles' folders below `out`, each with what that role may have: for trials, and to be copied apart.

    Whoever runs this sees all keys; where that matters, each role makes its identity on its own host.
    """
    halves = split(path)
    names = setup_of(halves[0]).names
    places = {role: Path(out) / role for role, name in ROLES.items() if name in names}
    certificates = {role: files.read(make_identity(place, role, days)) for role, place in places.items()}
    for role, place in places.items():
        for other, certificate in certificates.items():
            if other != role:
                files.write(place / PEERS / f"{other}.pem", certificate)
    for half in halves:
        files.write(places[list(ROLES)[half.party]] / MODEL, half.pack())
    if "dealer" in places:
        files.write(places["dealer"] / PROTOCOL, halves[0].interface.protocol.encode())
    return places


def read_protocol(folder: str | Path) -> SeveralParties:
    """The protocol that the dealer of this folder deals for.

    Raises:
        UsageError: There is no such protocol, or it has no dealer.
    """
    path = Path(folder) / PROTOCOL
    name = files.read(path).decode(errors="replace").strip() if path.exists() else DEFAULT_PROTOCOL
    backend = backends.load(name)
    if not hasattr(backend, "deal"):
        problem = Problem(str(path), f"{name} has no dealer.", "name a protocol that has one.")
        raise UsageError("There is nothing to deal.", [problem])
    return cast("SeveralParties", backend)


def read_identity(folder: str | Path) -> tuple[Identity, dict[str, bytes]]:
    """A role's identity, and the certificates of its peers by the roles' full names.

    Raises:
        UsageError: A file is absent or is no certificate or key.
    """
    from secure_infer.backends.parties.channel import Identity

    place = Path(folder)
    identity = Identity(files.read(place / KEY), files.read(place / CERTIFICATE))
    peers = {ROLES[role]: place / PEERS / f"{role}.pem" for role in ROLES}
    found = {name: files.read(path) for name, path in peers.items() if path.exists()}
    _require_pem({place / KEY: identity.key, place / CERTIFICATE: identity.certificate}, found)
    return identity, found


def read_half(folder: str | Path, party: int) -> PartyHalf:
    """The half in a role's folder.

    Raises:
        UsageError: It is absent.
        BundleError: It is damaged, or another party's.
    """
    path = Path(folder) / MODEL
    half = PartyHalf.unpack(files.read(path))
    if half.party != party:
        raise BundleError(
            f"This is not the half of party {party}.",
            [Problem(str(path), f"It is that of party {half.party}.", "copy the right one here.")],
        )
    backends.load(half.interface.protocol)
    return half


def _require_pem(mine: Mapping[Path, bytes], peers: Mapping[str, bytes]) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    problems = []
    for where, data in {**{str(path): data for path, data in mine.items()}, **peers}.items():
        try:
            if where.endswith(KEY):
                load_pem_private_key(data, None)
            else:
                x509.load_pem_x509_certificate(data)
        except (ValueError, TypeError):
            problems.append(Problem(where, "It holds no PEM key or certificate.", "make or copy it again."))
    if problems:
        raise UsageError("A role's identity can't be used.", problems)
