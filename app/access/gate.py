"""All that decides about a caller, put together."""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.access.audit import AuditLog
from app.access.callers import Caller
from app.access.expiry import expiry_of
from app.access.keys import KeyFile
from app.access.rates import Rates
from app.errors import AccessUnusable, CredentialsRejected, reason_of

if TYPE_CHECKING:
    from app.access.tokens import Tokens  # its own packages are an extra's


@dataclass(frozen=True, slots=True)
class Certificate:
    """What the service shows who it is with.

    Attributes:
        chain: File of the certificate and those above it, PEM.
        key: File of its private key, PEM; None where the chain's file holds it.
    """

    chain: Path
    key: Path | None

    def context(self) -> ssl.SSLContext:
        """Return what shows it.

        Raises:
            AccessUnusable: A file is missing, is no PEM, has a passphrase, or the two do not belong together.
        """
        for path in filter(None, (self.chain, self.key)):
            try:
                path.open("rb").close()
            except OSError as error:
                raise AccessUnusable(f"{path}: {reason_of(error)}; TLS needs a certificate and its key, PEM") from error
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.chain, self.key, password=_no_passphrase)
        except (ssl.SSLError, ValueError) as error:
            both = f"{self.chain} and {self.key} are" if self.key else f"{self.chain} is"
            elsewhere = "" if self.key else "; a key that is in a file of its own is named by --tls-key"
            raise AccessUnusable(
                f"{both} no certificate in PEM and the key of it without a passphrase ({error}){elsewhere}"
            ) from error
        return context

    def expires_at_seconds(self) -> float | None:
        """Return when it expires, in seconds since 1970; None where that cannot be told."""
        return expiry_of(self.chain.read_bytes())


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase")


@dataclass(frozen=True, slots=True)
class Access:
    """Who may ask, how often, and what is written down about it. Made before processes are forked.

    Attributes:
        keys: API keys, or None.
        tokens: An issuer's tokens, or None.
        public: Which parts of the service stay open all the same.
        rates: The callers' limits, or None.
        audit: Where requests are written down, or None.
        certificate: For TLS, or None.
        origins: Whose pages may ask from a browser.
    """

    keys: KeyFile | None = None
    tokens: "Tokens | None" = None
    public: frozenset[str] = frozenset()
    rates: Rates | None = None
    audit: AuditLog | None = None
    certificate: Certificate | None = None
    origins: tuple[str, ...] = ()

    @property
    def is_guarded(self) -> bool:
        """Whether callers have to show who they are."""
        return self.keys is not None or self.tokens is not None

    def look_again(self) -> None:
        """Take the files as they are now, as for processes that begin later than the service did.

        Raises:
            AccessUnusable: One of them cannot be used; what was there before stays.
        """
        if self.certificate is not None:
            self.certificate.context()
        if self.keys is not None:
            self.keys.read()

    async def caller_of(self, credential: str) -> Caller:
        """Return who shows a key or a token.

        Raises:
            CredentialsRejected: It is neither, or not valid any more.
            KeysUnavailable, IssuerUnavailable: Whether it is valid cannot be told now.
        """
        caller = self.keys.caller_of(credential) if self.keys else None
        if caller is not None:
            return caller
        if self.tokens is None or credential.count(".") != 2:
            raise CredentialsRejected("this key is not known, or was revoked")
        return await self.tokens.caller_of(credential)
