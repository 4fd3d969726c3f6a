"""Against a real issuer on this machine."""

import asyncio
import base64
import hashlib
import hmac
import json
import threading
import time

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from app.access import tokens as tokens_module
from app.access.callers import Caller, Scope
from app.access.tokens import Tokens
from app.errors import CredentialsRejected, IssuerUnavailable
from tests.fakes import Clock
from tests.issuer import AUDIENCE, RSA, issuing, public_pem

KEYS, DISCOVERY = "/keys", "/.well-known/openid-configuration"
NOW = int(time.time())


@pytest.fixture
def clock():
    return Clock(1000.0)


@pytest.fixture(scope="module")
def _served():
    with issuing() as issuer:
        yield issuer


@pytest.fixture
def issuer(_served):
    before = dict(_served.keys)
    _served.asked.clear()
    yield _served
    _served.keys, _served.is_down, _served.calls_itself, _served.keys_at = before, False, None, None


@pytest.fixture
def tokens(issuer, clock):
    return Tokens(issuer.url, AUDIENCE, None, clock)


def caller(tokens, *shown):
    async def ask():
        return await asyncio.gather(*map(tokens.caller_of, shown))

    return asyncio.run(ask())[0]


def by_hand(header, claims, key=b""):
    """A token such as no library makes."""
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims)]
    signature = hmac.digest(key, b".".join(parts), hashlib.sha256) if key else b""
    return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


@pytest.mark.parametrize("key", ["rsa", "elliptic"])
def test_a_valid_token_is_its_subjects(issuer, tokens, key):
    assert caller(tokens, issuer.token(key)) == Caller("oidc:anna", frozenset({Scope.SEGMENT}))
    assert issuer.asked == [DISCOVERY, KEYS]


@pytest.mark.parametrize(
    ("claims", "scopes"),
    [
        ({"scope": "tessera:metrics tessera:admin"}, {"metrics", "admin"}),
        ({"scope": None, "scp": "tessera:segment"}, {"segment"}),
        ({"scope": None, "roles": ["tessera:segment", "tessera:admin", 7]}, {"segment", "admin"}),
        ({"scope": "tessera:metrics", "roles": ["tessera:segment"]}, {"segment", "metrics"}),
        ({"scope": "segment tessera:root", "roles": {"tessera:admin": 1}, "scp": 5}, set()),
        ({"scope": None}, set()),
    ],
)
def test_scopes_are_the_words_of_the_known_claims(issuer, tokens, claims, scopes):
    assert caller(tokens, issuer.token(**claims)).scopes == scopes


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"aud": "another"}, "another audience"),
        ({"aud": None}, "lacks one of"),
        ({"iss": "https://elsewhere.example"}, "another issuer's"),
        ({"iss": None}, "lacks one of"),
        ({"exp": NOW - 3600}, "has expired"),
        ({"exp": None}, "lacks one of"),
        ({"nbf": NOW + 3600}, "not valid yet"),
        ({"sub": None}, "lacks one of"),
        ({"kid": "unknown"}, "does not publish"),
        ({"kid": "elliptic"}, "in a way that is not accepted"),
        ({"algorithm": "RS512"}, "in a way that is not accepted"),
    ],
)
def test_a_token_that_is_not_for_here_and_now_is_rejected(issuer, tokens, changed, words):
    with pytest.raises(CredentialsRejected, match=words):
        caller(tokens, issuer.token(**changed))


def test_a_clock_may_be_half_a_minute_wrong(issuer, tokens):
    assert caller(tokens, issuer.token(exp=int(time.time()) - 10, nbf=int(time.time()) + 10))


def test_what_nobody_signed_or_anybody_could_is_rejected_before_any_key_is_asked_for(issuer, tokens):
    claims = jwt.decode(issuer.token(), options={"verify_signature": False})
    forged = [
        by_hand({"alg": "none", "kid": "rsa"}, claims),
        by_hand({"alg": "None", "kid": "rsa"}, claims),
        by_hand({"alg": "HS256", "kid": "rsa"}, claims, key=public_pem(RSA)),
        by_hand({"kid": "rsa"}, claims),
        "a.b.c",
        "..",
        "é.ü.ö",
    ]
    for token in forged:
        with pytest.raises(CredentialsRejected):
            caller(tokens, token)
    assert issuer.asked == []


def test_a_token_of_another_key_under_a_known_name_is_rejected(issuer, tokens):
    issuer.keys["other"] = rsa.generate_private_key(65537, 2048)
    token = issuer.token("other", kid="rsa")
    del issuer.keys["other"]
    with pytest.raises(CredentialsRejected, match="signature is wrong"):
        caller(tokens, token)


def test_a_short_key_is_not_believed(issuer, tokens):
    issuer.keys["short"] = rsa.generate_private_key(65537, 1024)
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        token = issuer.token("short")
    with pytest.raises(CredentialsRejected):
        caller(tokens, token)


def test_new_keys_are_asked_for_when_a_token_has_one_but_not_for_every_invention(issuer, tokens, clock):
    assert caller(tokens, issuer.token())
    issuer.keys["new"] = rsa.generate_private_key(65537, 2048)
    for _ in range(3):
        with pytest.raises(CredentialsRejected):
            caller(tokens, issuer.token(kid="invented"))
    assert issuer.asked.count(KEYS) == 1
    clock.now += 10
    assert caller(tokens, issuer.token("new"))
    assert caller(tokens, issuer.token("rsa"))
    with pytest.raises(CredentialsRejected):
        caller(tokens, issuer.token(kid="invented"))
    assert issuer.asked.count(KEYS) == 2


def test_a_key_that_the_issuer_took_back_is_not_believed_for_longer_than_ten_minutes(issuer, tokens, clock):
    token = issuer.token()
    assert caller(tokens, token)
    del issuer.keys["rsa"]
    clock.now += 599
    assert caller(tokens, token)
    clock.now += 1
    with pytest.raises(CredentialsRejected):
        caller(tokens, token)


def test_all_who_come_meanwhile_wait_for_one_answer(issuer, tokens):
    assert caller(tokens, *[issuer.token()] * 8)
    assert issuer.asked == [DISCOVERY, KEYS]


def test_without_the_issuer_nothing_is_known_of_a_token(issuer, tokens, clock, caplog):
    issuer.is_down = True
    for _ in range(3):
        with pytest.raises(IssuerUnavailable):
            caller(tokens, issuer.token())
    assert issuer.asked == [DISCOVERY]
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    issuer.is_down = False
    clock.now += 10
    assert caller(tokens, issuer.token())


def test_an_issuer_that_goes_down_leaves_known_keys_for_a_while_and_unknown_ones_in_doubt(issuer, tokens, clock):
    assert caller(tokens, issuer.token())
    issuer.is_down = True
    clock.now += 300
    with pytest.raises(IssuerUnavailable):
        caller(tokens, issuer.token(kid="perhaps new"))
    assert caller(tokens, issuer.token())
    clock.now += 300
    with pytest.raises(IssuerUnavailable):
        caller(tokens, issuer.token())


@pytest.mark.anyio
async def test_an_issuer_that_never_comes_to_an_end_is_not_waited_for(issuer, tokens, monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(tokens_module, "_ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(tokens, "_published", lambda: over.wait(30) and {})

    try:
        with pytest.raises(IssuerUnavailable, match="does not give its keys"):
            await tokens.caller_of(issuer.token())
    finally:
        over.set()


def test_keys_of_a_given_address_need_no_discovery(issuer, clock):
    assert caller(Tokens(issuer.url, AUDIENCE, f"{issuer.url}/keys", clock), issuer.token())
    assert issuer.asked == [KEYS]


@pytest.mark.parametrize("address", ["http://elsewhere.example/keys", "file:///etc/keys", "keys"])
def test_keys_that_would_come_in_the_clear_are_not_believed(issuer, tokens, address):
    issuer.keys_at = address
    with pytest.raises(IssuerUnavailable):
        caller(tokens, issuer.token())


def test_an_issuer_that_calls_itself_otherwise_is_not_believed(issuer, tokens):
    issuer.calls_itself = "https://elsewhere.example"
    with pytest.raises(IssuerUnavailable):
        caller(tokens, issuer.token())
    assert KEYS not in issuer.asked
