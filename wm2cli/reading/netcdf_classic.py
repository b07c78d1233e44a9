"""How long a classic NetCDF file must be, from its header.

netCDF-C reads zeros beyond the end of a classic file that was cut off, without a word.

Source: the NetCDF classic format specification (CDF-1, CDF-2, CDF-5), https://docs.unidata.ucar.edu/netcdf-c.
"""

from __future__ import annotations

import math
import struct

HEADER = 2**20
"""Bytes from the beginning that hold any header in practice."""

_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 8, 7: 1, 8: 2, 9: 4, 10: 8, 11: 8}
_DIMENSION, _VARIABLE, _ATTRIBUTE = 10, 11, 12


def classic_size(head: bytes) -> int | None:
    """Smallest size in bytes of the file that begins so, or None when the header is cut or not understood."""
    try:
        return _Header(head).size()
    except (struct.error, ValueError, KeyError, IndexError):
        return None


class _Header:
    def __init__(self, head: bytes) -> None:
        self.head = head
        self.at = 4
        version = head[3]
        if head[:3] != b"CDF" or version not in (1, 2, 5):
            raise ValueError("not classic NetCDF")
        self.count_format = ">Q" if version == 5 else ">I"
        self.offset_format = ">I" if version == 1 else ">Q"

    def number(self, layout: str) -> int:
        (value,) = struct.unpack_from(layout, self.head, self.at)
        self.at += struct.calcsize(layout)
        return int(value)

    def count(self) -> int:
        return self.number(self.count_format)

    def skip(self, length: int) -> None:
        self.at += -(-length // 4) * 4
        if self.at > len(self.head):
            raise ValueError("cut off")

    def entries(self, tag: int) -> range:
        """The beginning of a list: its tag and length."""
        found, length = self.number(">I"), self.count()
        if found not in (0, tag) or length > len(self.head):
            raise ValueError("not a list of that kind")
        return range(length)

    def attributes(self) -> None:
        for _ in self.entries(_ATTRIBUTE):
            self.skip(self.count())
            kind = self.number(">I")
            self.skip(self.count() * _TYPE_SIZES[kind])

    def size(self) -> int:
        unknown = 2 ** (8 * struct.calcsize(self.count_format)) - 1
        records = self.count()
        if records == unknown:  # a stream, whose length tells the number of records
            raise ValueError("streaming")
        lengths = []
        for _ in self.entries(_DIMENSION):
            self.skip(self.count())
            lengths.append(self.count())
        self.attributes()
        fixed_end, record_ends, strides = self.at, [], []
        for _ in self.entries(_VARIABLE):
            self.skip(self.count())
            shape = [lengths[self.count()] for _ in range(self.count())]
            self.attributes()
            width = _TYPE_SIZES[self.number(">I")]
            self.count()  # the size as written, which saturates for large variables
            begin = self.number(self.offset_format)
            if shape and shape[0] == 0:
                content = width * math.prod(shape[1:])
                record_ends.append(begin + content)
                strides.append(content)
            else:
                fixed_end = max(fixed_end, begin + width * math.prod(shape))
        # A record holds one entry of each variable, each filled up to 4 bytes, unless there is but one variable.
        stride = strides[0] if len(strides) == 1 else sum(-(-content // 4) * 4 for content in strides)
        last = max(record_ends, default=0) + (records - 1) * stride if records and record_ends else 0
        return max(fixed_end, self.at, last)
