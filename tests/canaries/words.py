"""Words that may appear nowhere, and the forms in which they would."""

import base64
import secrets

LENGTH = 13
"""Of a canary: enough against chance, and as long as the name of a colour profile that one replaces."""


class Canaries:
    """A canary for each place, made when it is first asked for: what is found tells where it came from."""

    def __init__(self) -> None:
        self.words: dict[str, str] = {}

    def __getitem__(self, place: str) -> str:
        return self.words.setdefault(place, "q" + secrets.token_hex(LENGTH // 2))


def forms(word: bytes) -> set[bytes]:
    """Return what `word` looks like in other clothes, in lower case but for base64, whose cases differ."""
    text = word.decode("latin-1")
    spellings = (word, text.encode("utf-8"), text.encode("utf-16-le"), text.encode("utf-16-be"))
    plain = {spelling.lower() for spelling in spellings}
    hexadecimal = {spelling.hex().encode() for spelling in (word, *spellings)}
    escaped = {"".join(f"{sign}{byte:02x}" for byte in word).encode() for sign in ("%", "\\x", "\\u00")}
    listed = {separator.join(map(str, word)).encode() for separator in (" ", ", ", ",")}
    return plain | hexadecimal | escaped | listed


def base64_forms(word: bytes) -> set[bytes]:
    """Return the part of `word` that base64 shows wherever it begins in what is encoded."""
    shown = {base64.b64encode(word[cut : cut + (len(word) - cut) // 3 * 3]) for cut in range(3)}
    return shown | {one.translate(bytes.maketrans(b"+/", b"-_")) for one in shown}


def holds(text: bytes, word: bytes) -> bool:
    """Whether `text` has `word` in any form."""
    lowered = text.lower()
    return any(form in lowered for form in forms(word)) or any(form in text for form in base64_forms(word))
