"""How a server is reached and convinced: addresses, tokens, certificates; nothing secret travels in the clear."""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from secure_infer.errors import AccessDenied, Problem, UsageError, missing_extra

TOKEN_VARIABLE = "SECURE_INFER_TOKEN"


@dataclass(frozen=True, repr=False)
class Access:
    """How a server is reached and convinced.

    Attributes:
        token: Bearer token; from the environment variable SECURE_INFER_TOKEN if None. Parties with tokens of their own
            have them in order, separated by commas, so that none sees another's.
        ca: PEM file of the authorities that may vouch for the server; the system's if None.
        certificate: PEM files of this client's certificate and its key, where a server asks for one.
        timeout: Seconds without any progress after which a connection counts as lost; a reply may take this long.
        retries: How often a request is tried again.
        patience: Most seconds that a request waits between its tries, all together.
        chunk: Bytes of evaluation keys that one request carries; what a lost connection costs.
    """

    token: str | None = None
    ca: str | Path | None = None
    certificate: tuple[str | Path, str | Path] | None = None
    timeout: float = 960.0
    retries: int = 5
    patience: float = 60.0
    chunk: int = 8 << 20

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Access:
        """Access from keyword arguments.

        Raises:
            UsageError: Some have no meaning.
        """
        known = [option.name for option in fields(cls)]
        unknown = [name for name in arguments if name not in known]
        if unknown:
            fix = f"use one of {', '.join(known)}."
            problems = [Problem(name, "There is no such argument.", fix) for name in unknown]
            raise UsageError("Some arguments have no meaning.", problems)
        return cls(**arguments)

    def bearer(self, party: int = 0) -> str:
        """The token for a party's server, or nothing."""
        given = (os.environ.get(TOKEN_VARIABLE, "") if self.token is None else self.token).split(",")
        return (given[party] if party < len(given) else given[-1]).strip()


def is_loopback(host: str) -> bool:
    """Whether a host's name or address means this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def checked(urls: Sequence[str]) -> list[str]:
    """The addresses, if all are URLs of servers.

    Raises:
        UsageError: They are not.
    """
    httpx2, problems = library(), []
    for url in urls:
        try:
            parsed = httpx2.URL(url)
            good = parsed.scheme in ("http", "https") and bool(parsed.host) and not parsed.userinfo
        except httpx2.InvalidURL:
            good = False
        if not good:
            problems.append(Problem(url[:100], "It is no address of a server.", "give https://host:port."))
    if problems or not urls:
        raise UsageError("A server's address can't be used.", problems)
    return list(urls)


def settings(url: str, access: Access, party: int = 0) -> dict[str, Any]:
    """Arguments of the library's client for one server."""
    httpx2 = library()
    address, token = httpx2.URL(url), access.bearer(party)
    private = address.scheme == "https"
    headers = {"Accept-Encoding": "identity"}
    if token:
        if not private and not is_loopback(address.host):
            raise AccessDenied(
                "The token would travel in the clear.",
                [Problem(url, "It is plain HTTP to another machine.", "use https://, or leave the token out.")],
            )
        if not (token.isascii() and token.isprintable()) or " " in token:
            problem = Problem("token", "It holds odd characters.", "copy it anew.")
            raise UsageError("The token can't be used.", [problem])
        headers["Authorization"] = f"Bearer {token}"
    return {
        "base_url": url,
        "headers": headers,
        "verify": _context(access) if private else True,
        "timeout": httpx2.Timeout(access.timeout, connect=min(10.0, access.timeout)),
        # A proxy of the environment would see what is sent in the clear.
        "trust_env": private,
    }


def _context(access: Access) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=access.ca)
        if access.certificate is not None:
            context.load_cert_chain(*access.certificate)
        return context
    except (OSError, ssl.SSLError) as error:
        where = str(access.certificate[0] if access.certificate else access.ca)
        raise UsageError(
            "A certificate can't be used.", [Problem(where, f"{error}.", "give PEM files that you may read.")]
        ) from error


def library() -> Any:
    """The module `httpx2`.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        import httpx2
    except ImportError as error:
        raise missing_extra("A client over HTTP", "serve", "httpx2") from error
    return httpx2
