"""Storing a result of Sectra's through the call-back address: created, or in place of one that the same order gave.

An application can create and replace results and not delete them, so a second one for the same order would stay for
ever; Sectra's whole-slide example replaces too. Between listing and replacing, a version id guards against others.
"""

from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from sectra_client.schemas import CreateInvocation

from app.errors import ArchiveRefused
from app.interop import sectra as interop
from app.slides.sectra_callback import Callback, path_of

_MOST_ANSWER_BYTES = 64 * 2**20


class _Data(BaseModel):
    context: dict[str, Any] | None = None


class _Stored(BaseModel):
    """What matters here of a result that Sectra holds; what else it has may be of any form."""

    id: int
    versionId: str  # noqa: N815  the SDK's name
    data: _Data


_STORED = TypeAdapter(list[_Stored])
_ANSWER = TypeAdapter(dict[str, Any])


def store(callback: Callback, order: CreateInvocation, result: dict[str, Any], replace_only: bool) -> dict[str, Any]:
    """Store a result and return it as Sectra then has it; blocks.

    Args:
        callback: The order's call-back address.
        order: What the result answers. Where the same was ordered on the slide before, that result is replaced.
        result: As of `app/interop/sectra.py`.
        replace_only: Store nothing, and return nothing, where there is none to replace.

    Raises:
        ArchiveUnavailable, ArchiveDenied, ArchiveRefused: The call-back does not do what the SDK says.
    """
    path = path_of("applications", order.applicationId, "results")
    listed = callback.get("the slide's results", path + path_of("slide", order.slideId), _MOST_ANSWER_BYTES)
    try:
        stored = [each for each in _STORED.validate_json(listed) if _is_of(each, interop.order_key(order))]
        if stored:
            replaced = path + path_of(str(stored[-1].id))
            content = interop.replacing(result, stored[-1].versionId)
            answer = callback.send("PUT", "a result to be replaced", replaced, content, _MOST_ANSWER_BYTES)
        elif replace_only:
            return {}
        else:
            answer = callback.send("POST", "a result to be stored", path, result, _MOST_ANSWER_BYTES)
        return _ANSWER.validate_json(answer)
    except ValidationError:  # its message holds what was sent
        raise ArchiveRefused("Sectra's call-back answers with results in a form that its SDK does not have") from None


def _is_of(stored: _Stored, key: str) -> bool:
    return (stored.data.context or {}).get("order") == key
