"""Windows on their way from a front process to the engine and back: pixels in shared memory, a socket for who is next.

A slot holds one window and, later, what the model says of it. It belongs to the front until the front asks, to the
engine until the engine answers. Behind the slots is a byte that says whether the model is late: no message, which a
front that does not read would leave no room for. Nothing has a name that could outlive the service.
"""

import mmap
import socket
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

import numpy as np

from app.inference.result import WindowResult
from app.pathology.arrays import RgbImage
from app.pathology.manifest import ModelManifest

_CHANNELS = 3
_LABEL = np.dtype(np.float32)
_ASK = struct.Struct("<BHHHd")
_ANSWER = struct.Struct("<BH")
_LONGEST_MESSAGE = max(_ASK.size, _ANSWER.size)
_MOST_UNREAD = 3
"""Messages of a front about one slot: a withdrawal that crosses its answer, then the next window and its withdrawal."""
_MESSAGE_BYTES = 2048
"""What Linux counts for one against its sender's room, at most; 768 were measured."""


class Verb(IntEnum):
    """What a front wants done with a slot."""

    SEGMENT = 0
    WITHDRAW = 1
    """Whoever waited gave up. The slot is answered all the same, and soon."""


class Outcome(IntEnum):
    """What became of it."""

    SEGMENTED = 0
    FAILED = 1
    NOT_READY = 2
    WITHDRAWN = 3
    NO_MEMORY = 4


@dataclass(frozen=True, slots=True)
class Asked:
    """A front's message.

    Attributes:
        verb: What to do.
        slot: With which slot.
        shape: (H, W) of the window in it.
        queued_at: When the front took it up, in seconds of the machine's monotonic clock, which all processes share.
    """

    verb: Verb
    slot: int
    shape: tuple[int, int]
    queued_at: float


Answered: TypeAlias = tuple[int, Outcome]
"""The engine's message: which slot, and what became of it."""


class Exchange:
    """The slots of one front, and the two ends of its socket. Made before both processes are forked.

    Args:
        manifest: Says how large a window can be, and how many labels one has.
        slots: How many windows the front may have with the engine at once.
    """

    def __init__(self, manifest: ModelManifest, slots: int) -> None:
        self.slots = slots
        self._labels = len(manifest.label_classes)
        self._pixels = manifest.window_px**2
        used = self._pixels * (_CHANNELS + 2) + self._labels * _LABEL.itemsize
        self._slot_bytes = -(-used // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = mmap.mmap(-1, slots * self._slot_bytes + 1)
        self.front_end, self.engine_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in self.ends:
            # The system's default may be for fewer messages, and who has no room for one cannot wait.
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MOST_UNREAD * slots * _MESSAGE_BYTES)
            end.setblocking(False)

    def fits(self, manifest: ModelManifest) -> bool:
        """Whether a slot holds a window of such a model, and what it says of one."""
        return (manifest.window_px**2, len(manifest.label_classes)) == (self._pixels, self._labels)

    @property
    def ends(self) -> tuple[socket.socket, socket.socket]:
        """Both ends, for a process that is neither the front nor the engine to close."""
        return self.front_end, self.engine_end

    def close(self) -> None:
        """Let go of both ends and the memory, in a process that is neither the front nor the engine.

        An end that is open here would hide that a process ended, and memory that is mapped here, or in what is forked
        from here, would outlive both.
        """
        for end in self.ends:
            end.close()
        self._memory.close()

    @property
    def late(self) -> bool:
        """Whether the model is late, by what the engine said last."""
        return bool(self._memory[-1])

    @late.setter
    def late(self, late: bool) -> None:
        self._memory[-1] = late

    def image(self, slot: int, shape: tuple[int, int]) -> RgbImage:
        """Return the slot's place for (H, W, 3) uint8 pixels, in the shared memory itself."""
        return self._view(slot * self._slot_bytes, (*shape, _CHANNELS))

    def put(self, slot: int, result: WindowResult) -> None:
        """Leave what the model says of the slot's window in its place."""
        shape = result.class_map.shape
        class_map, confidence, labels = self._places(slot, (shape[0], shape[1]))
        class_map[...] = result.class_map
        confidence[...] = result.confidence
        labels[...] = result.label_probabilities

    def take(self, slot: int, shape: tuple[int, int]) -> WindowResult:
        """Return a copy of what the model said of the slot's (H, W) window."""
        return WindowResult(*(place.copy() for place in self._places(slot, shape)))

    def ask(self, asked: Asked) -> None:
        """Send the engine a message. There is room for all that a front can have to say before the engine reads.

        Raises:
            BrokenPipeError, ConnectionResetError: The engine has ended.
            OSError: There is no room all the same: the system allows less.
        """
        self.front_end.send(_ASK.pack(asked.verb, asked.slot, *asked.shape, asked.queued_at))

    def answer(self, slot: int, outcome: Outcome) -> None:
        """Send the front a message. A slot's next one comes only once the front has read this one, and there is room.

        Raises:
            BrokenPipeError, ConnectionResetError: The front has ended.
        """
        self.engine_end.send(_ANSWER.pack(outcome, slot))

    def asked(self) -> list[Asked] | None:
        """Return the front's messages that have come in; None once the front is gone."""
        messages, gone = _received(self.engine_end)
        if gone and not messages:
            return None
        found = []
        for verb, slot, height, width, queued_at in map(_ASK.unpack, messages):
            found.append(Asked(Verb(verb), slot, (height, width), queued_at))
        return found

    def answered(self) -> list[Answered] | None:
        """Return the engine's messages that have come in; None once the engine is gone."""
        messages, gone = _received(self.front_end)
        if gone and not messages:
            return None
        return [(slot, Outcome(outcome)) for outcome, slot in map(_ANSWER.unpack, messages)]

    def _places(self, slot: int, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        start = slot * self._slot_bytes + self._pixels * _CHANNELS
        labels = np.frombuffer(self._memory, _LABEL, self._labels, start + 2 * self._pixels)
        return self._view(start, shape), self._view(start + self._pixels, shape), labels

    def _view(self, start: int, shape: tuple[int, ...]) -> np.ndarray:
        return np.ndarray(shape, np.uint8, self._memory, start)


def _received(end: socket.socket) -> tuple[list[bytes], bool]:
    """Return the messages that wait, and whether the other end is closed."""
    messages: list[bytes] = []
    while True:
        try:
            message = end.recv(_LONGEST_MESSAGE)
        except BlockingIOError:
            return messages, False
        except ConnectionResetError:
            return messages, True
        if not message:
            return messages, True
        messages.append(message)
