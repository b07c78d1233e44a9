"""Where GRIB messages begin and end: whole files, damaged ones, and several fields in one message."""

from __future__ import annotations

from pathlib import Path

import eccodes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weather import LAT, LON, encode, encode_multi, weather

from wm2cli.errors import DataError
from wm2cli.reading.messages import Memory, field_bytes, header_bytes, split

ONE = encode("t", 500, style="era5")
TWO = encode("t", 500, style="gfs")
BOTH = ONE + TWO


def decode(message: bytes) -> np.ndarray:
    handle = eccodes.codes_new_from_message(message)
    try:
        return np.asarray(eccodes.codes_get_values(handle))
    finally:
        eccodes.codes_release(handle)


def test_messages_of_both_editions_are_found() -> None:
    found, notes = split(Memory("a", BOTH))
    assert [(m.number, m.part, m.edition, m.offset, m.length) for m in found] == [
        (1, None, 1, 0, len(ONE)),
        (2, None, 2, len(ONE), len(TWO)),
    ]
    assert notes == []
    assert field_bytes(Memory("a", BOTH), found[1]) == TWO


@pytest.mark.parametrize("message", [ONE, TWO], ids=["edition 1", "edition 2"])
def test_a_header_alone_says_what_the_message_says(message: bytes) -> None:
    source = Memory("a", message)
    header, grid = header_bytes(source, split(source)[0][0])
    assert len(header) < 250
    assert grid in message
    keys = ("paramId", "typeOfLevel", "level", "dataDate", "dataTime", "stepRange", "gridType", "Ni")
    whole, short = eccodes.codes_new_from_message(message), eccodes.codes_new_from_message(header)
    for key in keys:
        assert eccodes.codes_get(whole, key) == eccodes.codes_get(short, key)
    eccodes.codes_release(whole)
    eccodes.codes_release(short)


def test_a_header_leaves_a_bitmap_of_edition_1_behind() -> None:
    values = weather("t", 500)
    values[3, 4] = np.nan
    source = Memory("a", encode("t", 500, values))
    header, _ = header_bytes(source, split(source)[0][0])
    handle = eccodes.codes_new_from_message(header)
    assert eccodes.codes_get(handle, "paramId") == 130
    eccodes.codes_release(handle)


@pytest.mark.parametrize("filler", [b"", b"\x00" * 56, b"\r\n"])
def test_short_filler_between_messages_is_nothing_to_speak_of(filler: bytes) -> None:
    found, notes = split(Memory("a", ONE + filler + TWO + filler))
    assert len(found) == 2
    assert notes == []


def test_a_hole_between_messages_is_told() -> None:
    """As a download leaves that reserved the space and lost a part."""
    found, notes = split(Memory("a.grib", ONE + bytes(len(TWO)) + TWO))
    assert len(found) == 2
    assert notes == [f"a.grib: {len(TWO)} empty bytes lie between messages: some may be lost"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (BOTH[:-1], rf"message 2 at byte {len(ONE)} claims {len(TWO)} bytes, only {len(TWO) - 1} are left"),
        (BOTH[: len(ONE) + 10], rf"message 2 at byte {len(ONE)} .*cut off"),
        (ONE[:-4] + b"7776", r"message 1 at byte 0 .* ends with b'7776', not with 7777"),
        (TWO[:-4] + b"\x00" * 4, r"not with 7777"),
        (ONE + b"<html>" + TWO, rf"message 2 at byte {len(ONE)} does not begin with GRIB but with b'<html>GR'"),
        (TWO[:7] + b"\x03" + TWO[8:], r"has edition 3; 1 and 2 can be read"),
        (ONE[:4] + b"\x00\x10\x00" + ONE[7:], r"its sections need"),
        (TWO[:16] + b"\x00\x00\x00\x02" + TWO[20:], r"section 1 of 2 bytes at byte 16, which cannot be"),
        (TWO[: len(TWO) // 2] + TWO, r"message 1 at byte 0 "),
    ],
)
def test_damage_is_refused_by_message_and_byte(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        split(Memory("a.grib", data))
    assert caught.value.hint == "the file is damaged or incomplete: get it again"
    assert caught.value.message.startswith("a.grib: ")


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(1, len(BOTH) - 1))
def test_no_cut_goes_unnoticed(cut: int) -> None:
    if cut == len(ONE):
        assert len(split(Memory("a", BOTH[:cut]))[0]) == 1
        return
    with pytest.raises(DataError):
        split(Memory("a", BOTH[:cut]))


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 250), value=st.integers(0, 255))
def test_a_changed_header_is_read_or_refused(place: int, value: int) -> None:
    for message in (ONE, TWO):
        data = bytearray(message)
        data[place] = value
        try:
            found, _ = split(Memory("a", bytes(data)))
        except DataError:
            continue
        assert all(message.length <= len(data) for message in found)


def multi(path: Path) -> bytes:
    return encode_multi(path, [encode("u", 500, style="gfs"), encode("v", 500, style="gfs")])


def test_two_fields_of_a_message_come_apart(tmp_path: Path) -> None:
    data = multi(tmp_path / "multi.grib2")
    source = Memory("a", ONE + data + TWO)
    found, _ = split(source)
    assert [m.text for m in found] == ["message 1", "message 2 field 1", "message 2 field 2", "message 3"]
    with open(tmp_path / "multi.grib2", "rb") as stream:  # eccodes' own splitting as the oracle
        eccodes.codes_grib_multi_support_on()
        try:
            for mine in found[1:3]:
                handle = eccodes.codes_grib_new_from_file(stream)
                assert eccodes.codes_get(handle, "shortName") == ("u" if mine.part == 1 else "v")
                np.testing.assert_array_equal(decode(field_bytes(source, mine)), eccodes.codes_get_values(handle))
                eccodes.codes_release(handle)
        finally:
            eccodes.codes_grib_multi_support_off()


def test_a_bitmap_defined_before_is_used_again(tmp_path: Path) -> None:
    """Bitmap indicator 254 (GRIB2 code table 6.0): the second field has the first one's missing points."""
    u, v = weather("u", 500), weather("v", 500)
    u[5, 6] = v[5, 6] = np.nan
    path = tmp_path / "multi.grib2"
    first, second = encode("u", 500, u, style="gfs"), encode("v", 500, v, style="gfs")
    data = encode_multi(path, [first, second])
    source = Memory("a", data)
    found, _ = split(source)
    own = next(section for section in found[1].sections if section.number == 6)
    assert own.length > 6
    again = data[: own.offset] + b"\x00\x00\x00\x06\x06\xfe" + data[own.offset + own.length :]
    again = again[:8] + len(again).to_bytes(8, "big") + again[16:]
    repeated = Memory("a", again)
    for mine, whole in zip(split(repeated)[0], (first, second), strict=True):
        np.testing.assert_array_equal(decode(field_bytes(repeated, mine)), decode(whole))


def test_a_bitmap_that_was_never_defined_is_refused() -> None:
    source = Memory("a", TWO)
    section = next(part for part in split(source)[0][0].sections if part.number == 6)
    data = TWO[: section.offset + 5] + b"\xfe" + TWO[section.offset + 6 :]
    with pytest.raises(DataError, match="refers to an earlier bitmap, and there is none"):
        split(Memory("a", data))


@pytest.mark.slow
def test_messages_of_edition_1_beyond_eight_megabytes() -> None:
    lat, lon = np.linspace(90, -90, 1801), np.arange(0, 360, 0.1)
    big = encode("t2m", None, weather("t2m", None, lat, lon), lat=lat, lon=lon)
    assert len(big) > 0x7FFFFF
    source = Memory("a", ONE + big + ONE)
    found, _ = split(source)
    assert [message.length for message in found] == [len(ONE), len(big), len(ONE)]
    assert field_bytes(source, found[1]) == big
    assert LAT.size * LON.size < decode(big).size == lat.size * lon.size
