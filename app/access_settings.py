"""Settings of access, which `Settings` has too: who may ask, how often, what is written down, TLS, foreign pages."""

import re
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.access.audit import AuditLog
from app.access.callers import MOST_IMAGES_PER_MINUTE
from app.access.gate import Access, Certificate
from app.access.keys import KeyFile
from app.access.rates import Rates
from app.addresses import HOST, is_loopback, is_private
from app.libraries import require

if TYPE_CHECKING:
    from app.access.tokens import Tokens

_PUBLIC = ("viewer", "docs", "metrics", "model", "sectra")
_ORIGIN = re.compile(f"https?://{HOST}")
_HOST = re.compile(HOST)

_log = getLogger(__name__)


def _listed(value: object) -> object:
    return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value


CommaList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)]
"""Words separated by commas, and spaces as one likes."""


def _hosts(value: tuple[str, ...]) -> tuple[str, ...]:
    for entry in value:
        if not _HOST.fullmatch(entry):
            raise ValueError(
                f"{entry} is neither host nor host:port, as in pathology.example or pathology.example:8443"
            )
    return value


HostList = Annotated[CommaList, AfterValidator(_hosts)]
"""Hosts likewise, each with or without a port."""


class AccessSettings(BaseSettings):
    """Who may ask, and what is written down about it."""

    model_config = SettingsConfigDict(env_prefix="TESSERA_", frozen=True, extra="forbid")

    keys_file: Path | None = Field(
        default=None,
        description="File of API keys, one line each as tessera keys new writes it; without it, no keys are asked for.",
    )
    oidc_issuer: str | None = Field(
        default=None,
        description="OpenID Connect issuer whose tokens are accepted beside keys, exactly as its tokens name it.",
    )
    oidc_audience: str | None = Field(
        default=None, description="Name that the issuer's tokens have for this service: their audience."
    )
    oidc_jwks: str | None = Field(
        default=None,
        description="Address of the issuer's keys; by default the issuer itself is asked for it (discovery).",
    )
    public: CommaList = Field(
        default=("viewer", "docs"),
        description="Parts of the service that stay open when the others need a key, separated by commas: any of"
        f" {', '.join(_PUBLIC)}.",
    )
    rate_limit: int | None = Field(
        default=None,
        ge=1,
        le=MOST_IMAGES_PER_MINUTE,
        description="Images per minute that each caller may send unless its key has a rate of its own; more are"
        " refused (429).",
    )
    audit_log: Path | None = Field(
        default=None,
        description="File to which one line of JSON is appended for each request to /segment, /classify, /sectra/hook"
        " or /admin; without it, there is no audit log.",
    )
    tls_cert: Path | None = Field(
        default=None, description="File of the certificate and its chain, PEM; with it, the service speaks TLS."
    )
    tls_key: Path | None = Field(
        default=None,
        description="File of the certificate's private key, PEM; by default the key is in the certificate's file.",
    )
    cors_origins: CommaList = Field(
        default=(),
        description="Origins whose pages may send requests from a browser, as in https://lis.example, separated by"
        " commas.",
    )

    @field_validator("public")
    @classmethod
    def _parts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := sorted(set(value) - set(_PUBLIC)):
            raise ValueError(f"{unknown[0]} is none of {', '.join(_PUBLIC)}")
        return value

    @field_validator("keys_file", "audit_log", "tls_cert", "tls_key", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        return not_empty(value)

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            if not _ORIGIN.fullmatch(entry):
                raise ValueError(f"{entry} is no origin, as in https://lis.example or https://lis.example:8443")
        return value

    @field_validator("oidc_issuer", "oidc_jwks")
    @classmethod
    def _trusted(cls, value: str | None) -> str | None:
        if value is not None and not is_private(value):
            raise ValueError("it must begin with https://; what comes by plain http cannot be believed")
        return value

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        if (self.oidc_issuer is None) != (self.oidc_audience is None):
            raise ValueError("--oidc-issuer and --oidc-audience come together")
        if self.oidc_jwks is not None and self.oidc_issuer is None:
            raise ValueError("--oidc-jwks needs --oidc-issuer")
        if self.tls_key is not None and self.tls_cert is None:
            raise ValueError("--tls-key needs --tls-cert")
        return self


def not_empty(value: object) -> object:
    """Return a path as it was given; an empty one would be the folder that the service happens to be started in.

    Raises:
        ValueError: It is empty.
    """
    if value == "":
        raise ValueError("is empty; leave it out, or name a file or folder")
    return value


def access_of(settings: AccessSettings, host: str) -> Access:
    """Open what the settings name: the files are there and right, or the service does not start.

    Args:
        settings: Who may ask.
        host: The address to listen on.

    Raises:
        AccessUnusable: A file cannot be used.
        ExtraMissing: An issuer is named, and the packages for its tokens are not installed.
    """
    certificate = Certificate(settings.tls_cert, settings.tls_key) if settings.tls_cert else None
    if certificate:
        certificate.context()
    keys = KeyFile(settings.keys_file) if settings.keys_file else None
    access = Access(
        keys=keys,
        tokens=_tokens(settings),
        public=frozenset(settings.public),
        rates=Rates(settings.rate_limit) if settings.rate_limit or keys else None,
        audit=AuditLog(settings.audit_log) if settings.audit_log else None,
        certificate=certificate,
        origins=settings.cors_origins,
    )
    if not access.is_guarded and not is_loopback(host):
        _log.warning("whoever reaches %s may use the service: set TESSERA_KEYS_FILE, or see docs/access.md", host)
    return access


def _tokens(settings: AccessSettings) -> "Tokens | None":
    if settings.oidc_issuer is None or settings.oidc_audience is None:
        return None
    require("OpenID Connect", ("jwt", "cryptography"), "oidc")
    from app.access.tokens import Tokens  # noqa: PLC0415

    return Tokens(settings.oidc_issuer, settings.oidc_audience, settings.oidc_jwks)
