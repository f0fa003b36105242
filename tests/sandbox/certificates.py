"""The certificates of the sandbox's servers: a CA made for each alone, and what that signs."""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from pathlib import Path

LIFETIME = dt.timedelta(days=30)
# Clocks differ; a certificate of this very second may be of the future elsewhere.
BACKDATED = dt.timedelta(hours=1)


@dataclass(frozen=True)
class RedisCertificates:
    """Files in PEM that a Redis server with TLS and its clients share, in one directory."""

    directory: Path

    @property
    def authority(self) -> Path:
        """Certificate of the CA that signed the others."""
        return self.directory / "ca.crt"

    @property
    def other_authority(self) -> Path:
        """Certificate of a CA that signed none of them."""
        return self.directory / "other-ca.crt"

    def of(self, whom: Literal["server", "client"]) -> tuple[Path, Path]:
        """Certificate and private key."""
        return self.directory / f"{whom}.crt", self.directory / f"{whom}.key"


def write_certificates(directory: Path) -> None:
    """Write PEM files: ca.crt, the API server's api-server.crt and .key, service-account.key and .pub.

    And client.crt and .key, the login of a user of the name `certified`.
    """
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = _authority(ca_key)
    _write_certificate(directory / "ca.crt", ca)

    server_key = ec.generate_private_key(ec.SECP256R1())
    hosts = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    server = _signed(server_key, "kube-apiserver", ExtendedKeyUsageOID.SERVER_AUTH, hosts, ca, ca_key)
    _write_certificate(directory / "api-server.crt", server)
    _write_private(directory / "api-server.key", server_key)

    client_key = ec.generate_private_key(ec.SECP256R1())
    client = _signed(client_key, "certified", ExtendedKeyUsageOID.CLIENT_AUTH, [], ca, ca_key)
    _write_certificate(directory / "client.crt", client)
    _write_private(directory / "client.key", client_key)

    token_key = ec.generate_private_key(ec.SECP256R1())
    _write_private(directory / "service-account.key", token_key)
    public = token_key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (directory / "service-account.pub").write_bytes(public)


def write_redis_certificates(directory: Path) -> RedisCertificates:
    """Write what a Redis server that asks for client certificates needs, what its clients need, and a CA of no use."""
    written = RedisCertificates(directory)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = _authority(ca_key)
    _write_certificate(written.authority, ca)
    _write_certificate(written.other_authority, _authority(ec.generate_private_key(ec.SECP256R1())))
    whom: Literal["server", "client"]
    for whom, usage in (("server", None), ("client", ExtendedKeyUsageOID.CLIENT_AUTH)):
        key = ec.generate_private_key(ec.SECP256R1())
        certificate_path, key_path = written.of(whom)
        _write_certificate(certificate_path, _signed(key, f"redis-{whom}", usage, ["localhost"], ca, ca_key))
        _write_private(key_path, key)
    return written


def _authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "PodLink sandbox CA")])
    return (
        _builder(name, name, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def _signed(
    key: ec.EllipticCurvePrivateKey,
    name: str,
    usage: x509.ObjectIdentifier | None,
    hosts: list[str],
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    """A certificate for these hosts and 127.0.0.1; usage None: for both ends, as servers that replicate need it."""
    names: list[x509.GeneralName] = [x509.DNSName(host) for host in hosts]
    names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    usages = [usage] if usage else [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    authority_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return (
        _builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), ca.subject, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(authority_key, critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    # Python 3.13 and later refuse a CA that does not say that it may sign certificates.
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write_certificate(path: Path, certificate: x509.Certificate) -> None:
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _write_private(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    path.touch(mode=0o600)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(pem)
