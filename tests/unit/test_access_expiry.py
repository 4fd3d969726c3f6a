"""When a certificate expires. The package `cryptography`, which the service does without, makes them."""

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from app.access.expiry import expiry_of
from tests.issuer import pem

FIRST = datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)


def certificate(expires_at, name="tessera"):
    key = ec.generate_private_key(ec.SECP256R1())
    called = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, part) for part in (name, name)])
    made = x509.CertificateBuilder(called, called, key.public_key(), x509.random_serial_number(), FIRST, expires_at)
    return key, made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.mark.parametrize("name", ["tessera", "a long one " * 5])  # whose lengths take one byte, and several
@pytest.mark.parametrize("year", [2026, 2049, 2050, 9999])
def test_it_is_told_to_the_second(year, name):
    expires_at = datetime.datetime(year, 12, 31, 23, 59, 58, tzinfo=datetime.UTC)
    assert expiry_of(certificate(expires_at, name)[1]) == expires_at.timestamp()


def test_of_a_chain_with_its_key_the_first_certificate_counts():
    soon = datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC)
    key, shown = certificate(soon)
    _, above = certificate(datetime.datetime(2040, 1, 1, tzinfo=datetime.UTC))
    for chain in (shown + above + pem(key), pem(key) + shown + above, b"issued to tessera\r\n" + shown):
        assert expiry_of(chain) == soon.timestamp()


@pytest.mark.parametrize(
    "chain",
    [
        b"",
        b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\n\xff\n-----END CERTIFICATE-----\n",
    ],
)
def test_of_what_is_none_nothing_is_told(chain):
    assert expiry_of(chain) is None
