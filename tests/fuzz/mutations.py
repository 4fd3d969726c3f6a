"""Damage to files, and what makes a damaged file get past the checks that would end its way at the door."""

import random
import struct
import zlib

_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_WORDS = (
    b"IHDR", b"IDAT", b"IEND", b"PLTE", b"tRNS", b"acTL", b"fcTL", b"iCCP", b"zTXt", b"iTXt", b"eXIf",
    b"\xff\xd8", b"\xff\xd9", b"\xff\xda", b"\xff\xc0", b"\xff\xc2", b"\xff\xc4", b"\xff\xdb", b"\xff\xdd", b"\xff\xe1",
    b"II*\0", b"MM\0*", b"II+\0", b"VP8 ", b"VP8L", b"VP8X", b"ANIM", b"ANMF", b"ALPH", b"DICM",
    b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0", b"\xe0\x7f\x10\x00", b"\xff\xff\xff\xff", b"SQ\0\0", b"UN\0\0",
)  # fmt: skip
"""What the formats' parsers look for."""


def damaged(data: bytes, chance: random.Random, most: int = 4) -> bytes:
    """Return `data` with one to `most` things done to it: bits, numbers, words, pieces gone, doubled or moved."""
    spoilt = bytearray(data)
    for _ in range(chance.randint(1, most)):
        at = chance.randrange(len(spoilt) + 1)
        match chance.randrange(9):
            case 0 if at < len(spoilt):
                spoilt[at] ^= 1 << chance.randrange(8)
            case 1 if at < len(spoilt):
                spoilt[at] = chance.randrange(256)
            case 2:
                width = chance.choice((1, 2, 4))
                number = chance.choice(_NUMBERS) & ((1 << 8 * width) - 1)
                spoilt[at : at + width] = number.to_bytes(width, chance.choice(("little", "big")))
            case 3:
                del spoilt[at : at + chance.randint(1, 16)]
            case 4:
                spoilt[at:at] = chance.randbytes(chance.randint(1, 16))
            case 5:
                spoilt[at:at] = spoilt[at : at + chance.randint(1, 200)]
            case 6:
                word = chance.choice(_WORDS)
                spoilt[at : at + len(word)] = word
            case 7:
                end = min(len(spoilt), at + chance.randint(1, 64))
                spoilt[at:end] = chance.randbytes(end - at)
            case 8 if chance.random() < 0.2:
                del spoilt[at:]
    data = bytes(spoilt)
    return with_checksums(data) if chance.random() < 0.5 else data


def with_checksums(data: bytes) -> bytes:
    """Return a PNG with the checksums that its chunks should have; anything else as it is."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    repaired = bytearray(data)
    position = 8
    while position + 12 <= len(repaired):
        end = position + 8 + int.from_bytes(repaired[position : position + 4])
        if end + 4 > len(repaired):
            break
        repaired[end : end + 4] = struct.pack(">I", zlib.crc32(repaired[position + 4 : end]))
        position = end + 4
    return bytes(repaired)
