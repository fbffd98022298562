"""Keys, certificates, requests and revocation lists as values: no file, no clock."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fleet_protocol.access import Identity
from fleet_protocol.errors import RejectedError

Key: TypeAlias = ec.EllipticCurvePrivateKey
PublicKey: TypeAlias = ec.EllipticCurvePublicKey

BACKDATED: Final = timedelta(hours=1)
"""Certificates hold from before they are made: clocks differ."""
REQUEST_MAX_BYTES: Final = 8_192


class Issuer(msgspec.Struct, frozen=True):
    """An authority: what it is and what it signs with."""

    certificate: x509.Certificate
    key: Key


class Span(msgspec.Struct, frozen=True):
    """From when to when a certificate holds, in UTC."""

    begin: datetime
    end: datetime

    @classmethod
    def of(cls, now_ms: int, life: timedelta) -> Span:
        """Return the span of a certificate that is made now."""
        now = datetime.fromtimestamp(now_ms // 1_000, UTC)
        return cls(now - BACKDATED, now + life)


def new_key() -> Key:
    """Return a new key on the curve P-256, which every TLS library knows."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: Key, *, passphrase: bytes | None = None) -> bytes:
    """Return a key as PKCS #8 PEM, encrypted if there is a passphrase."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


def read_key(pem: bytes, *, passphrase: bytes | None = None) -> Key:
    """Return the key in a PEM.

    Raises:
        RejectedError: `bad_key`: it is none, is of another kind, or the passphrase is wrong.
    """
    try:
        key = serialization.load_pem_private_key(pem, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise RejectedError(
            f"the key cannot be read: {error}", code="bad_key", hint="check file and passphrase"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise RejectedError("the key is not on an elliptic curve", code="bad_key")
    return key


def pem_of(*certificates: x509.Certificate) -> bytes:
    """Return certificates one after the other, the leaf first."""
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates)


def read_certificate(pem: bytes) -> x509.Certificate:
    """Return the first certificate of a PEM.

    Raises:
        RejectedError: `bad_certificate`.
    """
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise RejectedError(
            f"the certificate cannot be read: {error}", code="bad_certificate"
        ) from error


def make_root(name: str, key: Key, span: Span) -> x509.Certificate:
    """Return the certificate of a fleet's root, which signs issuing authorities alone."""
    subject = _name(f"{name} root")
    builder = _builder(subject, subject, key.public_key(), span)
    return _authority(builder, key.public_key(), key.public_key(), depth=1).sign(
        key, hashes.SHA256()
    )


def make_issuing(root: Issuer, name: str, public: PublicKey, span: Span) -> x509.Certificate:
    """Return the certificate of an authority that issues identities."""
    builder = _builder(_name(f"{name} issuing"), root.certificate.subject, public, span)
    signed = _authority(builder, public, root.key.public_key(), depth=0)
    return signed.sign(root.key, hashes.SHA256())


def issue_identity(
    issuer: Issuer, identity: Identity, public: PublicKey, span: Span
) -> x509.Certificate:
    """Return an identity's certificate: its id is the common name, its role the unit."""
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, identity.id),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, identity.role),
        ]
    )
    builder = _builder(subject, issuer.certificate.subject, public, span)
    return _leaf(builder, issuer, ExtendedKeyUsageOID.CLIENT_AUTH)


def issue_server(
    issuer: Issuer, hosts: Sequence[str], public: PublicKey, span: Span
) -> x509.Certificate:
    """Return a server's certificate for names and addresses, at least one."""
    builder = _builder(_name(hosts[0][:64]), issuer.certificate.subject, public, span)
    names = x509.SubjectAlternativeName([_host(host) for host in hosts])
    builder = builder.add_extension(names, critical=False)
    return _leaf(builder, issuer, ExtendedKeyUsageOID.SERVER_AUTH)


def hosts_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """Return the names and addresses that a server's certificate is for."""
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return tuple(str(name.value) for name in extension.value)


def make_request(identity_id: str, key: Key) -> bytes:
    """Return a request for a certificate (CSR), as PEM; the key stays where it is."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(identity_id))
    request = builder.sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def read_request(pem: bytes, identity_id: str) -> PublicKey:
    """Return the public key that a request wants certified; nothing else of it is believed.

    Raises:
        RejectedError: `bad_request`: it is none, is for another id, or whoever sent it has not
            the key.
    """
    if len(pem) > REQUEST_MAX_BYTES:
        raise _bad_request(f"it has more than {REQUEST_MAX_BYTES} bytes")
    try:
        request = x509.load_pem_x509_csr(pem)
        public = request.public_key()
        is_signed = request.is_signature_valid
        # Read only when it is asked for, and then it may be anything.
        names = [name.value for name in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    except Exception as error:
        # The library's errors share no base, and who asks may send anything.
        raise _bad_request(f"it cannot be read: {error}") from error
    if names != [identity_id]:
        raise _bad_request(f"its common name is not {identity_id}")
    if not is_signed:
        raise _bad_request("its signature does not belong to its key")
    if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.key_size < 256:
        raise _bad_request("its key is not on an elliptic curve of 256 bits or more")
    return public


def make_revocations(
    issuer: Issuer, revoked: Iterable[tuple[int, int]], *, updated_at_ms: int
) -> bytes:
    """Return a revocation list as PEM.

    It holds as long as its authority: a list that lapsed would have the broker turn everybody
    away, and nobody fetches it from afar, where its age would have to be judged.

    Args:
        issuer: Whose certificates they are.
        revoked: Serial numbers, and when they were revoked in epoch milliseconds.
        updated_at_ms: Must grow from list to list by a second: a broker that has loaded two
            believes the later one.
    """
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        # A list from the future would have the broker turn everybody away.
        .last_update(_instant(updated_at_ms) - BACKDATED)
        .next_update(issuer.certificate.not_valid_after_utc)
    )
    for serial, at_ms in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial)
        builder = builder.add_revoked_certificate(entry.revocation_date(_instant(at_ms)).build())
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def revocations_span(pem: bytes) -> Span:
    """Return from when to when a revocation list holds.

    Raises:
        RejectedError: `bad_certificate`: it is none, or holds for ever.
    """
    try:
        listed = x509.load_pem_x509_crl(pem)
    except ValueError as error:
        raise RejectedError(
            f"the revocation list cannot be read: {error}", code="bad_certificate"
        ) from error
    if listed.next_update_utc is None:
        raise RejectedError("the revocation list names no end", code="bad_certificate")
    return Span(listed.last_update_utc, listed.next_update_utc)


def key_digest(public: PublicKey) -> bytes:
    """Return what tells one public key from another."""
    return x509.SubjectKeyIdentifier.from_public_key(public).digest


def public_digest(certificate: x509.Certificate) -> bytes:
    """Return the same of a certificate's key; empty where it is of another kind than ours."""
    public = certificate.public_key()
    return key_digest(public) if isinstance(public, ec.EllipticCurvePublicKey) else b""


def _bad_request(why: str) -> RejectedError:
    return RejectedError(
        f"the certificate request is refused: {why}",
        code="bad_request",
        hint="make a new one with the board's own key and id",
    )


def _instant(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms // 1_000, UTC)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(
    subject: x509.Name, issuer: x509.Name, public: PublicKey, span: Span
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(span.begin)
        .not_valid_after(span.end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _authority(
    builder: x509.CertificateBuilder, public: PublicKey, signer: PublicKey, *, depth: int
) -> x509.CertificateBuilder:
    builder = builder.add_extension(
        x509.BasicConstraints(ca=True, path_length=depth), critical=True
    )
    if public.public_numbers() != signer.public_numbers():
        builder = _signed_by(builder, signer)
    return builder.add_extension(_usage(signs_certificates=True), critical=True)


def _leaf(
    builder: x509.CertificateBuilder,
    issuer: Issuer,
    purpose: x509.ObjectIdentifier,
) -> x509.Certificate:
    builder = _signed_by(builder, issuer.key.public_key())
    builder = builder.add_extension(
        x509.BasicConstraints(ca=False, path_length=None), critical=True
    )
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    return builder.sign(issuer.key, hashes.SHA256())


def _signed_by(builder: x509.CertificateBuilder, signer: PublicKey) -> x509.CertificateBuilder:
    return builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
