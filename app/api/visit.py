"""What is known of one request beside itself: who sent it, what of their rate it took, what came of its images."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256

from fastapi import Request
from starlette.requests import ClientDisconnect

from app.access.callers import Caller
from app.access.rates import Allowance
from app.api.problems import UploadTooLarge, kind_of
from app.errors import QueueFull, TesseraError
from app.segmentation.workers import Workers

VISIT = "tessera.visit"
"""Where a request's scope has it."""
CLIENT_LEFT_OUTCOME = "client-left"
FAULT = "internal-server-error"
_ANSWERED = "answered"
_QUICK_BYTES = 2**20
"""Hashed in a millisecond."""


@dataclass(slots=True)
class ReceivedImage:
    """An image of the request.

    Attributes:
        sha256: Hexadecimal digest of its bytes.
        outcome: "answered", or the kind of problem that it met; None as long as it is under way.
    """

    sha256: str
    outcome: str | None = None


class Visit:
    """One request.

    Args:
        caller: Who sent it.
        allowance: What it takes of their rate.
        is_audited: Whether it will be written down.
    """

    def __init__(self, caller: Caller, allowance: Allowance, is_audited: bool) -> None:
        self.caller = caller
        self.images: list[ReceivedImage] = []
        self._allowance = allowance
        self._is_audited = is_audited

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count one image of the caller's rate; should the block find no place in the queue, all are given back.

        Raises:
            RateExceeded: It is one too many for now.
        """
        self._allowance.take(1)
        try:
            yield
        except QueueFull:
            self._allowance.give_back()
            raise

    async def received(self, images: list[bytes], workers: Workers) -> None:
        """Take note of all images of the request, of which one was counted at the door.

        Args:
            images: Their bytes.
            workers: Threads that hash what takes long, where the request will be written down.

        Raises:
            UploadTooLarge: They are more than the caller may send in a minute: no later try would do.
            RateExceeded: They are too many for now.
        """
        if self._is_audited:
            is_quick = sum(map(len, images)) <= _QUICK_BYTES
            self.images = _noted(images) if is_quick else await workers.run(None, partial(_noted, images))
        most = self._allowance.most
        if most is not None and len(images) > most:
            self._allowance.give_back()
            raise UploadTooLarge(f"more than {most} images, which this caller may send a minute; send fewer at a time")
        self._allowance.take(len(images) - 1)

    def refused(self, index: int, error: TesseraError) -> None:
        """Take note that one of several images met an error, which spares the others.

        One that found no place is given back, as all are where that is the answer to the request.
        """
        if isinstance(error, QueueFull):
            self._allowance.give_back(1)
        if self._is_audited:
            self.images[index].outcome = kind_of(error)

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Take note of how the block ends, for all images of which nothing else is known."""
        outcome = FAULT
        try:
            yield
            outcome = _ANSWERED
        except TesseraError as error:
            outcome = kind_of(error)
            raise
        except (ClientDisconnect, asyncio.CancelledError):
            outcome = CLIENT_LEFT_OUTCOME
            raise
        finally:
            for image in self.images:
                image.outcome = image.outcome or outcome


def visit_of(request: Request) -> Visit:
    """Return the visit that a request is."""
    visit: Visit = request.scope[VISIT]
    return visit


def _noted(images: list[bytes]) -> list[ReceivedImage]:
    return [ReceivedImage(sha256(data).hexdigest()) for data in images]
