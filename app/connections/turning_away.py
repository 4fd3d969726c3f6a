"""Requests that a connection answers by itself, because the service has no place for what they bring.

Such a request never becomes one of uvicorn's: no task, no way through the application. What it brings is thrown away.
"""

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.door import Door, TurnedAway
from app.api.uploads import SOON_SECONDS
from app.connections.alarm import Alarm
from app.connections.lifetime import BoundedConnection
from app.connections.limits import ConnectionLimits
from app.connections.refusals import written
from app.telemetry.metrics import Metrics


class SelectiveConnection(BoundedConnection):
    """Turns requests away, one of those that come in one read: the others take their turn among all connections.

    Args:
        door: Decides.
        limits: What the client may do.
        metrics: Told of what is refused.
        uvicorns: What uvicorn gives its own.
    """

    def __init__(self, door: Door, limits: ConnectionLimits, metrics: Metrics, **uvicorns: Any) -> None:
        super().__init__(door, limits, metrics, **uvicorns)
        self._turned_away: TurnedAway | None = None
        self._has_turned_away = False
        self._rest_due = Alarm(self.loop, self._miss_rest)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        super().connection_lost(exc)
        self._rest_due.clear()
        if self._turned_away is not None:
            self._turned_away.left()
            self._turned_away = None

    def shutdown(self) -> None:
        """Take no further request."""
        self._may_keep = False
        if self._turned_away is None:
            super().shutdown()

    def _is_turned_away(self) -> bool:
        """Return whether the request whose headers have come is turned away."""
        is_plain = not (self._unanswered or self._is_extra or self.flow.write_paused or self.parser.should_upgrade())
        if not is_plain or self._has_turned_away:
            return False
        self._turned_away = self._door.turn_away(self.parser.get_method(), self.url, self.headers)
        if self._turned_away is None:
            return False
        self._may_keep = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        self._rest_due.set(SOON_SECONDS)
        return True

    def _answer_turned_away(self) -> None:
        """Answer it: it has come in whole."""
        self._has_turned_away = True
        self._rest_due.clear()
        is_last = not self._may_keep or not self._door.keeps_connections()
        self._answers.write(self._refused(is_last=is_last))
        HttpToolsProtocol.on_response_complete(self)  # nothing of uvicorn's has ended
        if is_last:
            self._close()

    def _miss_rest(self) -> None:
        self._refusal = self._refused(is_last=True)
        self._give_refusal(self._refusal)

    def _refused(self, *, is_last: bool) -> bytes:
        assert self._turned_away is not None  # noqa: S101  by its callers
        response = self._turned_away.answer(is_last=is_last)
        self._turned_away = None
        return written(response, self.server_state.default_headers)
