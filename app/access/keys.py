"""API keys: how they are made, and the file that names them, which is read again whenever it changes.

A line of the file is a key: its name, the SHA-256 of the key, what it may, and its own limit where it has one:

    viewer-west  9f86d081884c7d65...  segment  rate=600
    prometheus   60303ae22b998861...  metrics

A key is 256 random bits. That is why one round of SHA-256 keeps it: what makes hashes of passwords slow is that people
choose passwords, and nobody can try 2^256 keys however fast.
"""

import hmac
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from io import FileIO
from pathlib import Path

from app.access.callers import ANYBODY, MOST_IMAGES_PER_MINUTE, Caller, Scope
from app.errors import AccessUnusable, KeysUnavailable, reason_of

_PREFIX = "tessera_"
"""By it, whoever searches repositories and chats for leaked secrets knows one."""
_KEY = re.compile(_PREFIX + "[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile("[0-9a-f]{64}")
_RATE = re.compile("rate=([1-9][0-9]{0,6})")
_ABOUT_NAMES = f"a name has letters, digits, dots, dashes and underscores, 64 at most, and is not {ANYBODY.name}"
_LOOK_SECONDS = 1.0
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Key:
    digest: bytes
    caller: Caller


@dataclass(frozen=True, slots=True)
class _Version:
    """By what a changed file is told; a change of its mode or owner is one of `changed_ns` alone."""

    inode: int
    bytes: int
    modified_ns: int
    changed_ns: int


def new_key() -> str:
    """Return a key that nobody has."""
    return _PREFIX + secrets.token_hex(32)


def check_name(name: str) -> None:
    """Make sure that a key may be called `name`.

    Raises:
        AccessUnusable: It may not.
    """
    if not _is_name(name):
        raise AccessUnusable(_ABOUT_NAMES)


def _is_name(name: str) -> bool:
    """Return whether nobody else goes by a name: an issuer's subjects have a colon in theirs."""
    return bool(_NAME.fullmatch(name)) and name != ANYBODY.name


def line_of(key: str, caller: Caller) -> str:
    """Return the line of a key's file that lets `caller` in with `key`."""
    scopes = ",".join(sorted(caller.scopes))
    rate = f"  rate={caller.images_per_minute}" if caller.images_per_minute else ""
    return f"{caller.name}  {sha256(key.encode()).hexdigest()}  {scopes}{rate}"


def add_line(path: Path, line: str) -> None:
    """Append a key's line to a file, which is made where there is none.

    A file that cannot take the whole line stays as it was: half a line is one that the next start refuses.

    Raises:
        AccessUnusable: The file cannot be read or written, is broken, or has a key of that name.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        with open(handle, "r+b", buffering=0) as file:  # noqa: PTH123  a handle has no path
            before = file.read() or b""
            start = b"" if not before or before.endswith(b"\n") else b"\n"
            _, complaints = _parsed(path, before + start + line.encode())
            if complaints:
                raise AccessUnusable(complaints[0])
            _append(file, len(before), start + line.encode() + b"\n")
    except OSError as error:
        raise AccessUnusable(f"{path}: {reason_of(error)}") from error


def _append(file: FileIO, length: int, added: bytes) -> None:
    """Append all of `added` to a file that has `length` bytes, or nothing of it: a full disk takes a part first."""
    try:
        while added:
            added = added[file.write(added) :]
        os.fsync(file.fileno())  # some file systems tell only then
    except OSError:
        file.truncate(length)
        raise


class KeyFile:
    """The keys of a file, as it is now: what counts is never what a process happens to remember of it.

    A file that changes is read again, so that a key is revoked by taking its line away. A slip while editing must lock
    out nobody else, and must not bring a revoked key back: so in a file that has become wrong the lines that are right
    count. As long as it cannot be read at all, or others may write to it, no key is known to be right or wrong.

    Args:
        path: The file.
        clock: Tells seconds.

    Raises:
        AccessUnusable: It cannot be read, has a line that is no key, or others may write to it.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._looked_at = clock()
        self._version: _Version | None = None
        self._trouble: str | None = None
        self._keys: tuple[_Key, ...] = ()
        self._faulty_lines = 0
        self.read()

    def read(self) -> None:
        """Read the file now.

        Raises:
            AccessUnusable: As at first; then the keys stay as they were.
        """
        version, keys, complaints = _read(self._path)
        if complaints:
            raise AccessUnusable(complaints[0])
        self._version, self._keys, self._trouble, self._faulty_lines = version, keys, None, 0

    def caller_of(self, key: str) -> Caller | None:
        """Return whose key it is. Every key is compared, each in constant time: how long it takes tells nothing.

        Raises:
            KeysUnavailable: That cannot be told now.
        """
        if not _KEY.fullmatch(key):
            return None
        self._look()
        if self._version is None:
            raise KeysUnavailable("the service cannot tell now which keys are valid; its log says why")
        digest = sha256(key.encode()).digest()
        found = None
        for known in self._keys:
            if hmac.compare_digest(known.digest, digest):
                found = known.caller
        return found

    @property
    def trouble(self) -> str | None:
        """What keeps it from being told now which keys are valid; None: nothing does."""
        self._look()
        return self._trouble

    @property
    def faulty_lines(self) -> int:
        """How many lines do not count for now: with one of them, no service starts. 0 of a file that cannot be read."""
        self._look()
        return self._faulty_lines

    def _look(self) -> None:
        now = self._clock()
        if now - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = now
        try:
            if self._version is not None and _version_of(_found(self._path)) == self._version:
                return
            version, keys, complaints = _read(self._path)
        except AccessUnusable as error:
            if self._version is not None:
                _log.error("no API key is taken: %s", error)
            self._version, self._keys, self._trouble = None, (), f"no API key is taken: {error}"
            self._faulty_lines = 0
            return
        self._version, self._keys, self._trouble, self._faulty_lines = version, keys, None, len(complaints)
        for complaint in complaints:
            _log.error("an API key does not count: %s", complaint)
        _log.info("API keys read again", extra={"keys": len(keys)})


def _read(path: Path) -> tuple[_Version, tuple[_Key, ...], list[str]]:
    """Return a file's version, the keys in it, and what is wrong with its other lines.

    Raises:
        AccessUnusable: It cannot be read, or others may write to it.
    """
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            content = file.read()
    except OSError as error:
        raise _unreadable(path, error) from error
    if found.st_mode & _OTHERS_WRITE:
        raise AccessUnusable(f"{path}: others may write to it, and so let themselves in; chmod go-w")
    return _version_of(found), *_parsed(path, content)


def _found(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> AccessUnusable:
    return AccessUnusable(f"{path}: {reason_of(error)}; tessera keys new --file makes a file of keys")


def _version_of(found: os.stat_result) -> _Version:
    return _Version(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _parsed(path: Path, content: bytes) -> tuple[tuple[_Key, ...], list[str]]:
    """Return the keys, and what is wrong with which line; not the line itself, for it may hold a key."""
    keys: list[_Key] = []
    complaints: list[str] = []
    for number, line in enumerate(content.decode("utf-8-sig", errors="replace").splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            key = _key_of(words)
            if any(key.caller.name == other.caller.name or key.digest == other.digest for other in keys):
                raise ValueError("this name or key is there already")
        except ValueError as error:
            complaints.append(f"{path}, line {number}: {error}")
        else:
            keys.append(key)
    return tuple(keys), complaints


def _key_of(words: list[str]) -> _Key:
    """Return the key that a line's words are.

    Raises:
        ValueError: They are none.
    """
    if len(words) not in (3, 4):
        raise ValueError("a key is a name, a SHA-256, scopes, and perhaps rate=IMAGES_A_MINUTE")
    name, digest, scopes = words[:3]
    rate = _RATE.fullmatch(words[3]) if len(words) == 4 else None
    if not _is_name(name):
        raise ValueError(_ABOUT_NAMES)
    if not _DIGEST.fullmatch(digest):
        raise ValueError("the second word is the key's SHA-256, in 64 small hexadecimal digits")
    if not set(scopes.split(",")) <= set(Scope):
        raise ValueError(f"scopes are {', '.join(Scope)}, with commas and no spaces")
    if len(words) == 4 and (rate is None or int(rate[1]) > MOST_IMAGES_PER_MINUTE):
        raise ValueError("the fourth word is rate=IMAGES_A_MINUTE, as in rate=600, a million at most")
    caller = Caller(name, frozenset(map(Scope, scopes.split(","))), int(rate[1]) if rate else None)
    return _Key(bytes.fromhex(digest), caller)
