"""When a certificate expires. The standard library tells that only of a peer's: see docs/decisions/0016-access.md."""

import re
import ssl
from datetime import UTC, datetime

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_VERSION_TAG = 0xA0
_FORMATS = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}
"""Of UTCTime and of GeneralizedTime: RFC 5280, section 4.1.2.5."""


def expiry_of(chain: bytes) -> float | None:
    """Return when the first certificate of a chain expires, in seconds since 1970.

    Args:
        chain: PEM; other blocks, such as a key's, may be in between.

    Returns:
        None where there is none, or it is not written as RFC 5280 has it.
    """
    found = _CERTIFICATE.search(chain)
    if found is None:
        return None
    try:
        return _not_after(ssl.PEM_cert_to_DER_cert(found[0].decode("ascii")))
    except (ValueError, IndexError):
        return None


def _not_after(certificate: bytes) -> float:
    """Return the end of a certificate's validity.

    Raises:
        ValueError, IndexError: It has none where RFC 5280, section 4.1, puts it.
    """
    _, whole, _ = _element(certificate)
    _, rest, _ = _element(whole)
    tag, _, after = _element(rest)
    if tag == _VERSION_TAG:  # left out in version 1
        rest = after
    for _ in ("serial number", "signature", "issuer"):
        _, _, rest = _element(rest)
    _, validity, _ = _element(rest)
    _, _, rest = _element(validity)
    tag, time, _ = _element(rest)
    if tag not in _FORMATS:
        raise ValueError("no time")
    return datetime.strptime(time.decode("ascii"), _FORMATS[tag]).replace(tzinfo=UTC).timestamp()


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """Return the tag and the content of the first element in DER, and what comes after it."""
    tag, length, start = data[0], data[1], 2
    if length > 0x7F:  # then it is how many bytes the length has
        start += length - 0x80
        length = int.from_bytes(data[2:start], "big")
    return tag, data[start : start + length], data[start + length :]
