"""GRIB messages: where they begin and end in a file, and which bytes make one field.

A GRIB file is a row of messages without a table of contents, and the decoder takes a damaged one without
complaint. So each is walked here by its own section lengths and refused when it does not end where it says.

A message of edition 2 may hold several fields that share their first sections (NCEP writes both wind
components so); each is given out as a message of its own.

Sources: WMO Manual on Codes, FM 92 GRIB edition 1 and edition 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from wm2cli.errors import DataError

MAGIC, END = b"GRIB", b"7777"

_NO_BITMAP = b"\x00\x00\x00\x06\x06\xff"
_NO_DATA = b"\x00\x00\x00\x05\x07"
# Simple packing in no bits: headers are read without data, and other packings would look for their tables there.
_NO_PACKING_1 = b"\x00\x00\x0c\x00" + bytes(8)
_NO_PACKING_2 = b"\x00\x00\x00\x15\x05" + bytes(16)
_SAME_BITMAP = 254  # GRIB2 code table 6.0: the bitmap defined before in this message
_LOOK_AHEAD = 4096  # more than all headers of a usual message
_FILLER = b"\x00 \r\n"  # what tapes and transfers leave between messages
_USUAL_FILLER = 120  # MARS fills messages of edition 1 up to multiples of this


class Bytes(Protocol):
    """Something with a name, a size and bytes: a file or a block of memory."""

    @property
    def label(self) -> str:
        """Its name in messages."""

    @property
    def size(self) -> int:
        """Number of bytes."""

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from an offset; fewer only at the end."""


@dataclass(frozen=True)
class Memory:
    """Bytes in memory under the name of where they came from."""

    label: str
    data: bytes

    @property
    def size(self) -> int:
        """Number of bytes."""
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from an offset; fewer only at the end."""
        return self.data[offset : offset + length]


@dataclass(frozen=True)
class Section:
    """One section of a message: its number in the edition's own counting, and where it lies in the file."""

    number: int
    offset: int
    length: int


@dataclass(frozen=True)
class Message:
    """One field of a GRIB file.

    Args:
        number: Which message of the file, from 1.
        part: Which field of the message, from 1; None when it is the only one.
        edition: 1 or 2.
        offset, length: Bytes of the whole message in the file.
        sections: Those of this field, without the first (indicator) and the end marker.
    """

    number: int
    part: int | None
    edition: int
    offset: int
    length: int
    sections: tuple[Section, ...]

    @property
    def text(self) -> str:
        """For people: `message 12`, `message 12 field 2`."""
        return f"message {self.number}" + ("" if self.part is None else f" field {self.part}")


def split(source: Bytes) -> tuple[list[Message], list[str]]:
    """All fields of a GRIB file, without decoding any.

    Args:
        source: The file; only headers and end markers are read.

    Returns:
        The fields in file order, and notes for the user (holes between messages).

    Raises:
        DataError: The file is cut short, has foreign bytes, or a message contradicts itself.
    """
    window = _Window(source)
    fields: list[Message] = []
    filler, offset, number = 0, 0, 0
    while offset < source.size:
        skipped = _skip_filler(window, offset)
        filler += skipped if skipped >= _USUAL_FILLER else 0
        offset += skipped
        if offset == source.size:
            break
        number += 1
        try:
            found = _walk(window, number, offset)
        except _BrokenError as error:
            raise DataError(
                f"{source.label}: message {number} at byte {offset} {error}",
                hint="the file is damaged or incomplete: get it again",
            ) from None
        fields += found
        offset += found[0].length
    notes = [f"{source.label}: {filler} empty bytes lie between messages: some may be lost"] if filler else []
    return fields, notes


def field_bytes(source: Bytes, message: Message) -> bytes:
    """A complete message with this field alone, as the decoder wants it."""
    if message.part is None:
        return source.read(message.offset, message.length)
    body = b"".join(source.read(section.offset, section.length) for section in message.sections)
    return _wrap_edition_2(source.read(message.offset, 8), body)


def header_bytes(source: Bytes, message: Message) -> tuple[bytes, bytes]:
    """A small message with this field's header and no data, and its grid section alone.

    Reading keys from it costs the same for a large field as for a small one, and never touches the data.
    """
    window = _Window(source)
    last = 2 if message.edition == 1 else 4
    parts = {
        section.number: window.read(section.offset, section.length)
        for section in message.sections
        if section.number <= last
    }
    if message.edition == 2:
        body = b"".join(parts[number] for number in sorted(parts)) + _NO_PACKING_2 + _NO_BITMAP + _NO_DATA
        return _wrap_edition_2(window.read(message.offset, 8), body), parts.get(3, b"")
    product = bytearray(parts[1])
    product[7] &= 0xBF  # the bitmap is left out, so the flag for it goes too
    body = bytes(product) + parts.get(2, b"") + _NO_PACKING_1
    return MAGIC + (8 + len(body) + 4).to_bytes(3, "big") + b"\x01" + body + END, parts.get(2, b"")


class _BrokenError(Exception):
    """Why a message cannot be walked, as the end of a sentence that begins with the message."""


class _Window:
    """Reads small pieces that lie close together with one call to the file."""

    def __init__(self, source: Bytes) -> None:
        self.source = source
        self._offset, self._data = 0, b""

    def read(self, offset: int, length: int) -> bytes:
        start = offset - self._offset
        if start < 0 or start + length > len(self._data):
            self._offset, self._data, start = offset, self.source.read(offset, max(length, _LOOK_AHEAD)), 0
        return self._data[start : start + length]

    def number(self, offset: int, length: int) -> int:
        return int.from_bytes(self.read(offset, length), "big")


def _skip_filler(window: _Window, offset: int) -> int:
    """Number of filler bytes at an offset."""
    start = offset
    while True:
        piece = window.read(offset, min(_LOOK_AHEAD, window.source.size - offset))
        rest = piece.lstrip(_FILLER)
        offset += len(piece) - len(rest)
        if rest or not piece:
            return offset - start


def _walk(window: _Window, number: int, offset: int) -> list[Message]:
    size = window.source.size
    head = window.read(offset, min(16, size - offset))
    if head[:4] != MAGIC:
        raise _BrokenError(f"does not begin with GRIB but with {head[:8]!r}")
    if len(head) < 16:
        raise _BrokenError(f"is cut off after {len(head)} bytes")
    edition = head[7]
    if edition not in (1, 2):
        raise _BrokenError(f"has edition {edition}; 1 and 2 can be read")
    length, fields = (_walk_1 if edition == 1 else _walk_2)(window, offset)
    if offset + length > size:
        raise _BrokenError(f"claims {length} bytes, only {size - offset} are left: the file is cut off")
    found = window.read(offset + length - 4, 4)
    if found != END:
        raise _BrokenError(f"claims {length} bytes but ends with {found!r}, not with 7777")
    only = len(fields) == 1
    return [Message(number, None if only else part, edition, offset, length, sections)
            for part, sections in enumerate(fields, 1)]  # fmt: skip


def _walk_1(window: _Window, offset: int) -> tuple[int, list[tuple[Section, ...]]]:
    """Length and sections of a message of edition 1."""
    claimed = window.number(offset + 4, 3)
    room = window.source.size - offset
    sections: list[Section] = []
    here = offset + 8
    present = {1: True, 2: False, 3: False, 4: True}
    for number in (1, 2, 3, 4):
        if not present[number]:
            continue
        if here + 11 > offset + room:
            raise _BrokenError(f"is cut off after {room} bytes, in section {number}")
        length = window.number(here, 3)
        if number == 1:
            flags = window.read(here + 7, 1)[0]
            present[2], present[3] = bool(flags & 0x80), bool(flags & 0x40)
        if number < 4 and length < (28 if number == 1 else 6):
            raise _BrokenError(f"has a section {number} of {length} bytes")
        sections.append(Section(number, here, length))
        here += length
    data = sections[-1]
    total = claimed
    if claimed & 0x800000 and data.length < 120:
        # Messages of 8 MiB and more: the total counts in 120 bytes, and the length of the data section holds by how
        # much that is too long (as ECMWF writes it; the code itself has no room for such messages).
        total = (claimed & 0x7FFFFF) * 120 - data.length + 4
        sections[-1] = Section(4, data.offset, offset + total - 4 - data.offset)
    elif data.offset + data.length + 4 > offset + total:
        raise _BrokenError(f"claims {total} bytes, its sections need {data.offset + data.length + 4 - offset}")
    return total, [tuple(sections)]


def _walk_2(window: _Window, offset: int) -> tuple[int, list[tuple[Section, ...]]]:
    """Length of a message of edition 2 and the sections of each of its fields."""
    total = window.number(offset + 8, 8)
    end = offset + total - 4
    if end + 4 > window.source.size:
        raise _BrokenError(f"claims {total} bytes, only {window.source.size - offset} are left: the file is cut off")
    fields: list[tuple[Section, ...]] = []
    current: dict[int, Section] = {}
    bitmap: Section | None = None
    here = offset + 16
    while here < end:
        length, number = window.number(here, 4), window.read(here + 4, 1)[0]
        if length < 5 or here + length > end or not 1 <= number <= 7:
            raise _BrokenError(f"has a section {number} of {length} bytes at byte {here}, which cannot be")
        section = Section(number, here, length)
        if number == 6:
            indicator = window.read(here + 5, 1)[0]
            if indicator == _SAME_BITMAP:
                if bitmap is None:
                    raise _BrokenError("refers to an earlier bitmap, and there is none")
                section = bitmap
            elif indicator == 0:
                bitmap = section
        current[number] = section
        here += length
        if number == 7:
            absent = {1, 3, 4, 5, 6} - current.keys()
            if absent:
                raise _BrokenError(f"lacks section {min(absent)}")
            fields.append(tuple(current[key] for key in sorted(current)))
            # What the next field does not repeat, it inherits; its product, packing and data it must bring itself.
            for key in (4, 5, 6, 7):
                del current[key]
    if here != end or not fields or current.keys() & {4, 5, 6, 7}:
        raise _BrokenError("has sections that do not add up to its length")
    return total, fields


def _wrap_edition_2(indicator: bytes, body: bytes) -> bytes:
    return indicator + (16 + len(body) + 4).to_bytes(8, "big") + body + END
