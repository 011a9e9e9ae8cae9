"""A certificate authority for one run on loopback: it signs the servers' certificates, and is forgotten afterwards."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING

from secure_infer import files
from secure_infer.errors import missing_extra

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.x509 import CertificateBuilder, Name

_DAY = datetime.timedelta(days=1)


class Authority:
    """Signs certificates for 127.0.0.1; its key stays in memory.

    Raises:
        MissingExtra: The library that makes keys is not installed.
    """

    def __init__(self) -> None:
        try:
            from cryptography import x509
            from cryptography.hazmat.primitives.asymmetric import ec
        except ModuleNotFoundError as error:
            raise missing_extra("TLS between the roles", "serve", error.name or "cryptography") from error
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "secure_infer, one run")])
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = self._builder(self._name, self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self._certificate = self._signed(builder.add_extension(usage, critical=True))

    def write(self, path: Path) -> Path:
        """Write the authority's certificate, by which a client knows the servers."""
        return files.write(path, self._certificate)

    def issue(self, certificate: Path, key: Path) -> None:
        """Write a server's certificate for this machine, and its key."""
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        private = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, certificate.parent.name)])
        names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
        builder = self._builder(subject, private.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        files.write(certificate, self._signed(builder))
        encoding = serialization.Encoding.PEM
        plain = serialization.NoEncryption()
        pem = private.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)
        files.write(key, pem, mode=files.PRIVATE)

    def _builder(self, subject: Name, public: EllipticCurvePublicKey) -> CertificateBuilder:
        from cryptography import x509

        now = datetime.datetime.now(datetime.UTC)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _DAY / 24)
            .not_valid_after(now + _DAY)
            .add_extension(identifier, critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )

    def _signed(self, builder: CertificateBuilder) -> bytes:
        from cryptography.hazmat.primitives import hashes, serialization

        signed = builder.sign(self._key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)
