"""Bearer tokens of an OpenID Connect issuer: JSON Web Tokens (RFC 7519), checked with the keys that it publishes.

PyJWT checks them. When the issuer is asked for its keys is decided here: seldom, once for all who wait, in a thread.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import jwt

from app.access.callers import Caller, Scope
from app.addresses import is_private
from app.errors import CredentialsRejected, IssuerUnavailable

_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Of key pairs alone: with a shared secret, what checks tokens could make them."""
_REQUIRED = ["iss", "aud", "sub", "exp"]
_SCOPE_CLAIMS = ("scope", "scp", "roles")
"""RFC 8693's, and what Entra ID calls them for users and for programs."""
_SCOPE_PREFIX = "tessera:"
_LEEWAY_SECONDS = 30
_LIFETIME_SECONDS = 600.0
"""How long a key that the issuer took back may still be believed."""
_PAUSE_SECONDS = 10.0
"""Between two questions for keys, whatever tokens come in."""
_TIMEOUT_SECONDS = 5.0
"""For each part of an answer."""
_ANSWER_SECONDS = 10.0
"""For all of what a caller waits for."""
_NO_KEYS = "the issuer of tokens does not give its keys; try again later"
_DISCOVERY = "/.well-known/openid-configuration"

_REASONS: dict[type[jwt.PyJWTError], str] = {
    jwt.ExpiredSignatureError: "the token has expired",
    jwt.ImmatureSignatureError: "the token is not valid yet",
    jwt.InvalidAudienceError: "the token is for another audience",
    jwt.InvalidIssuerError: "the token is another issuer's",
    jwt.MissingRequiredClaimError: f"the token lacks one of {', '.join(_REQUIRED)}",
    jwt.InvalidSignatureError: "the token's signature is wrong",
    jwt.InvalidAlgorithmError: "the token is signed in a way that is not accepted",
}

_log = logging.getLogger(__name__)


class Tokens:
    """Tells whose a token is.

    Args:
        issuer: The issuer, as its tokens name it.
        audience: What its tokens call this service.
        jwks: Where its keys are; None asks the issuer (OpenID Connect Discovery 1.0).
        clock: Tells seconds.
    """

    def __init__(
        self, issuer: str, audience: str, jwks: str | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._issuer = issuer
        self._audience = audience
        self._jwks = jwks
        self._clock = clock
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fresh_until = float("-inf")
        self._next_question = float("-inf")
        self._failed = False
        self._asking: asyncio.Task[None] | None = None

    async def caller_of(self, token: str) -> Caller:
        """Return whose token it is.

        Raises:
            CredentialsRejected: It is not the issuer's, not for this service, not valid now, or no token.
            IssuerUnavailable: The issuer does not give its keys.
        """
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in _ALGORITHMS:
                raise jwt.InvalidAlgorithmError
            key = await self._key(str(header.get("kid")))
            claims = jwt.decode(
                token,
                key,
                algorithms=_ALGORITHMS,
                audience=self._audience,
                issuer=self._issuer,
                leeway=_LEEWAY_SECONDS,
                options={"require": _REQUIRED, "enforce_minimum_key_length": True},
            )
        except jwt.PyJWTError as error:  # its own words may hold what the token says
            raise CredentialsRejected(_REASONS.get(type(error), "this is no valid token")) from error
        return Caller(f"oidc:{claims['sub']}", _scopes(claims))

    async def _key(self, name: str) -> jwt.PyJWK:
        if self._clock() >= self._fresh_until or name not in self._keys:
            await self._ask()
        if self._clock() >= self._fresh_until or (self._failed and name not in self._keys):
            raise IssuerUnavailable(_NO_KEYS)
        if name not in self._keys:
            raise CredentialsRejected("the token is signed with a key that its issuer does not publish")
        return self._keys[name]

    async def _ask(self) -> None:
        """Ask for the keys, unless that was just done; who comes meanwhile waits for the same answer.

        Raises:
            IssuerUnavailable: It does not come, as where the issuer sends a byte now and then.
        """
        if self._asking is None:
            if self._clock() < self._next_question:
                return
            self._asking = asyncio.create_task(self._take_keys())
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await asyncio.shield(self._asking)
        except TimeoutError:
            raise IssuerUnavailable(_NO_KEYS) from None

    async def _take_keys(self) -> None:
        try:
            self._keys = await asyncio.to_thread(self._published)
            self._fresh_until = self._clock() + _LIFETIME_SECONDS
            self._failed = False
        except (jwt.PyJWTError, OSError, ValueError) as error:
            self._failed = True
            _log.error("no keys from the issuer of tokens: %s", error)
        finally:
            self._next_question = self._clock() + _PAUSE_SECONDS
            self._asking = None

    def _published(self) -> dict[str, jwt.PyJWK]:
        """Return the issuer's keys by name.

        Raises:
            PyJWTError, OSError, ValueError: It does not give them.
        """
        address = self._jwks
        if address is None:
            described = _client(self._issuer.rstrip("/") + _DISCOVERY).fetch_data()
            if described.get("issuer") != self._issuer:
                raise ValueError(f"{self._issuer} calls itself {described.get('issuer')}")
            address = str(described.get("jwks_uri"))
            if not is_private(address):
                raise ValueError(f"its keys are at {address}, which is not https")
        return {str(key.key_id): key for key in _client(address).get_signing_keys()}


def _client(address: str) -> jwt.PyJWKClient:
    """Return what fetches one JSON object, follows no redirect and keeps nothing."""
    return jwt.PyJWKClient(address, cache_jwk_set=False, timeout=_TIMEOUT_SECONDS)


def _scopes(claims: Mapping[str, Any]) -> frozenset[Scope]:
    """Return what a token's claims allow here: lists, or words with spaces between."""
    named: set[str] = set()
    for claim in _SCOPE_CLAIMS:
        value = claims.get(claim)
        if isinstance(value, str):
            named.update(value.split())
        elif isinstance(value, list):
            named.update(word for word in value if isinstance(word, str))
    return frozenset(scope for scope in Scope if _SCOPE_PREFIX + scope in named)
