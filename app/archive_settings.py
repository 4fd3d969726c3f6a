"""Settings of the archive that `tessera dicomweb` speaks with: where it may be, how it is reached, who asks."""

import re
from pathlib import Path
from ssl import PROTOCOL_TLS_CLIENT, SSLContext
from typing import Annotated, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.access_settings import HostList

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
"""More than none, and a day at most."""
_TOKEN = re.compile(r"[\x21-\x7e]+")


class ArchiveSettings(BaseSettings):
    """How to reach a DICOMweb archive; credentials come from the environment alone, never from a command line."""

    model_config = SettingsConfigDict(env_prefix="TESSERA_DICOMWEB_", frozen=True, extra="forbid")

    hosts: HostList = Field(default=(), description="Host names allowed for the archive, separated by commas.")
    allow_http: bool = Field(
        default=False, description="Also speak plain HTTP to a host other than this machine, in a network you trust."
    )
    ca_bundle: Path | None = Field(
        default=None, description="File of certificates to trust, PEM; by default those of the certifi package."
    )
    timeout: Seconds = Field(
        default=30.0,
        description="Seconds to wait for the archive to take each part of a result, to begin its answer, and to send"
        " each part of that.",
    )
    token: SecretStr | None = Field(default=None, description="Bearer token for the archive.")
    username: str | None = Field(default=None, description="User name for the archive (HTTP Basic).")
    password: SecretStr | None = Field(default=None, description="Password for the archive (HTTP Basic).")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.username is None) != (self.password is None):
            raise ValueError("TESSERA_DICOMWEB_USERNAME and TESSERA_DICOMWEB_PASSWORD come together")
        if self.token is not None and self.username is not None:
            raise ValueError("give TESSERA_DICOMWEB_TOKEN, or a user name and password, not both")
        if self.token is not None and not _TOKEN.fullmatch(self.token.get_secret_value()):
            raise ValueError(
                "TESSERA_DICOMWEB_TOKEN must be letters, digits and signs of ASCII, without space or newline"
            )
        if self.username is not None and (":" in self.username or not self.username.isprintable()):
            raise ValueError("TESSERA_DICOMWEB_USERNAME must not hold a colon (RFC 7617) or a control character")
        if self.password is not None and not self.password.get_secret_value().isprintable():
            raise ValueError("TESSERA_DICOMWEB_PASSWORD must not hold a newline or another control character")
        if self.ca_bundle is not None:
            try:
                SSLContext(PROTOCOL_TLS_CLIENT).load_verify_locations(self.ca_bundle)
            except OSError as error:  # of which OpenSSL's is a kind
                raise ValueError(f"{self.ca_bundle} is no file of certificates in PEM") from error
        return self
