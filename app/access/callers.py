"""Who asks, and what they may: the words of this package."""

from dataclasses import dataclass
from enum import StrEnum

MOST_IMAGES_PER_MINUTE = 10**6
"""As large as a limit can be."""


class Scope(StrEnum):
    """Something that a caller may."""

    SEGMENT = "segment"
    METRICS = "metrics"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who asks.

    Attributes:
        name: What the audit log calls them; never a secret.
        scopes: What they may.
        images_per_minute: Their own limit; None for that of all.
    """

    name: str
    scopes: frozenset[Scope]
    images_per_minute: int | None = None


ANYBODY = Caller("anonymous", frozenset())
"""Whoever asks for what is open; for a rate, all of them are one."""
