"""Storing a result of Sectra's through the call-back address: created, or in place of one that the same order gave.

An application can create and replace results and not delete them, so a second one for the same order would stay for
ever; Sectra's whole-slide example replaces too. Between listing and replacing, a version id guards against others.
Tissue is replaced by tissue alone: that an order was repeated, and failed or was taken back, is no reason to lose it.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from sectra_client.schemas import CreateInvocation

from app.errors import ArchiveRefused, ArchiveUnavailable
from app.interop import sectra as interop
from app.segmentation.workers import Workers
from app.slides.sectra_callback import Callback, VersionChanged, path_of

_T = TypeVar("_T")
_MOST_ANSWER_BYTES = 64 * 2**20


class _Context(BaseModel):
    order: str = ""
    message: bool = False


class _Data(BaseModel):
    context: _Context = Field(default_factory=_Context)


class _Stored(BaseModel):
    """What matters here of a result that Sectra holds; what else it has may be of any form."""

    id: int
    versionId: str  # noqa: N815  the SDK's name
    data: _Data


_STORED: TypeAdapter[list[_Stored]] = TypeAdapter(list[_Stored])
_ANSWER: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


class Results:
    """Stores results, those of the same order one after the other.

    Args:
        fetchers: Threads that wait for a call-back.
    """

    def __init__(self, fetchers: Workers) -> None:
        self._fetchers = fetchers
        self._storing: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def check(self, callback: Callback, order: CreateInvocation) -> None:
        """Find out, before any work, whether a result could be stored; raises what `store` would."""
        await self._fetchers.run(None, partial(_find, callback, order))

    async def store(
        self,
        callback: Callback,
        order: CreateInvocation,
        result: dict[str, Any],
        check: Callable[[], None] = lambda: None,
        replace_only: bool = False,
    ) -> dict[str, Any]:
        """Store a result and return what Sectra then has for the order.

        Args:
            callback: The order's call-back address.
            order: What the result answers. Where the same was ordered on the slide before, that result is replaced.
            result: As of `app/interop/sectra.py`.
            check: Called before something is written; what it raises is raised, and nothing written.
            replace_only: Store nothing, and return nothing, where there is none to replace.

        Raises:
            ArchiveUnavailable, ArchiveDenied, ArchiveRefused: The call-back does not do what the SDK says.
        """
        lock = self._storing.setdefault((order.slideId, interop.order_key(order)), asyncio.Lock())
        async with lock:
            return await self._fetchers.run(None, partial(_store, callback, order, result, check, replace_only))


def _store(
    callback: Callback, order: CreateInvocation, result: dict[str, Any], check: Callable[[], None], replace_only: bool
) -> dict[str, Any]:
    for _ in range(2):  # a second time where another replaced it since it was listed
        stored = _find(callback, order)
        check()
        try:
            return _write(callback, order, result, stored, replace_only)
        except VersionChanged:
            continue
    raise ArchiveUnavailable("Sectra's call-back says that another changes the result at the same time; try later")


def _find(callback: Callback, order: CreateInvocation) -> _Stored | None:
    path = _path(order, "slide", order.slideId)
    listed = callback.get("the slide's results", path, _MOST_ANSWER_BYTES)
    key = interop.order_key(order)
    of_order = [each for each in _checked(_STORED, listed) if each.data.context.order == key]
    return of_order[-1] if of_order else None


def _write(
    callback: Callback, order: CreateInvocation, result: dict[str, Any], stored: _Stored | None, replace_only: bool
) -> dict[str, Any]:
    if stored is None:
        if replace_only:
            return {}
        answer = callback.send("POST", "a result to be stored", _path(order), result, _MOST_ANSWER_BYTES)
    elif result["data"]["context"]["message"] and not stored.data.context.message:
        answer = callback.get("a stored result", _path(order, str(stored.id)), _MOST_ANSWER_BYTES)
    else:
        content = interop.replacing(result, stored.versionId)
        path = _path(order, str(stored.id))
        answer = callback.send("PUT", "a result to be replaced", path, content, _MOST_ANSWER_BYTES)
    return _checked(_ANSWER, answer)


def _path(order: CreateInvocation, *segments: str) -> str:
    return path_of("applications", order.applicationId, "results", *segments)


def _checked(form: TypeAdapter[_T], answer: bytes) -> _T:
    try:
        return form.validate_json(answer)
    except ValidationError:  # its message holds what was sent
        raise ArchiveRefused("Sectra's call-back answers with results in a form that its SDK does not have") from None
