"""An OpenID Connect issuer on this machine: discovery, published keys, and tokens signed with them."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from tests.web import sends, serving

AUDIENCE = "tessera"
RSA = rsa.generate_private_key(65537, 2048)
ELLIPTIC = ec.generate_private_key(ec.SECP256R1())


def pem(key: PrivateKeyTypes) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_pem(key: PrivateKeyTypes) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


class Issuer:
    """What it publishes can be changed at any time; `is_down` has it answer nothing that helps.

    Attributes:
        asked: The paths that it was asked for, in order.
    """

    def __init__(self) -> None:
        self.url = ""
        self.calls_itself: str | None = None
        self.keys_at: str | None = None
        self.is_down = False
        self.asked: list[str] = []
        self.keys: dict[str, PrivateKeyTypes] = {"rsa": RSA, "elliptic": ELLIPTIC}

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.asked.append(handler.path)
        if self.is_down:
            sends(503)(handler)
            return
        described = {"issuer": self.calls_itself or self.url, "jwks_uri": self.keys_at or f"{self.url}/keys"}
        content = described if handler.path == "/.well-known/openid-configuration" else {"keys": self._published()}
        sends(200, json.dumps(content).encode())(handler)

    def token(self, key: str = "rsa", *, kid: str | None = None, algorithm: str | None = None, **changed: Any) -> str:
        """Return a token; a claim that is None is left out."""
        algorithm = algorithm or ("ES256" if key == "elliptic" else "RS256")
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "anna",
            "exp": now + 60,
            "nbf": now,
            "scope": "openid tessera:segment",
            **changed,
        }
        given = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(given, self.keys[key], algorithm, headers={"kid": kid or key})

    def _published(self) -> list[dict[str, Any]]:
        found = []
        for name, key in self.keys.items():
            kind = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
            found.append({**kind.to_jwk(key.public_key(), as_dict=True), "kid": name, "use": "sig"})
        return found


@contextmanager
def issuing() -> Iterator[Issuer]:
    issuer = Issuer()
    with serving(issuer.answer) as server:
        issuer.url = server.url
        yield issuer
