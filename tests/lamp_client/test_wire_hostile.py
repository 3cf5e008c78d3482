"""Bytes that nobody honest sends: answered with a WireError and nothing else, at little cost in time and memory."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamp_client.errors import WireError
from lamp_client.wire import Limits, pack, unpack

REQUEST = {
    "observation/image": np.arange(24 * 24 * 3, dtype=np.uint8).reshape(24, 24, 3),
    "observation/state": np.linspace(-1, 1, 8, dtype=np.float32),
    "prompt": "pick up the soup \u2603",
    "examples": [{"image": [np.zeros((4, 4, 3), np.uint8)], "lang": "x", "state": [0.5, 1, -3]}],
    "nested": {"a": [1, 2.5, None, True, -7, 2**40, b"raw"], 7: np.float32(1.5)},
}
TAGS = bytes(
    [0xC1, 0xC4, 0xC5, 0xC6, 0xC7, 0xC8, 0xC9, 0xD4, 0xD8, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF, 0x9F, 0x8F]
)
KEYS = st.one_of(st.text(max_size=8), st.binary(max_size=8), st.integers(0, 99))  # too short for an array's
PLAIN = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(max_size=40), st.binary()
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=20), st.dictionaries(KEYS, inner, max_size=20)),
)


def array_of(dtype: Any, shape: Any, data: Any) -> bytes:
    encoded = msgpack.packb({b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape})
    assert encoded is not None
    return encoded


def hostile(generator: random.Random, valid: bytes) -> bytes:
    """One message: noise, a valid one damaged, a header that lies, or an array that does."""
    kind = generator.randrange(6)
    if kind == 0:
        return generator.randbytes(generator.randrange(200))
    if kind == 1:
        return valid[: generator.randrange(len(valid))]
    if kind == 2:
        damaged = bytearray(valid)
        for _ in range(generator.randrange(1, 6)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        return bytes(damaged)
    if kind == 3:
        header = bytes([generator.choice(TAGS)]) + struct.pack(">I", generator.randrange(2**32))
        at = generator.randrange(len(valid))
        return valid[:at] + header + valid[at:]
    if kind == 4:
        return (bytes([generator.choice(b"\xdd\xdf\x91\x81")]) + b"\x00\xff\xff\xff") * generator.randrange(1, 100)
    dtype = generator.choice(
        ["|O", "O", "<c16", "|V8", "f4,f4", "<f4", "<f16", "<U9999999", "|S0", "<M8[x]", "\x00", 3, None]
    )
    shape = [generator.choice([0, 1, -1, 2**31, 2**63, 10**30, 2.5, "2", None]) for _ in range(generator.randrange(40))]
    try:
        return array_of(dtype, shape, generator.choice([b"", b"\0" * 8, "text", 5, None, [1]]))
    except (OverflowError, ValueError):
        return array_of(dtype, [2**63], b"")


def swallow(messages: int, seed: int) -> int:
    """Feeds messages and returns how many were accepted; anything but a WireError comes through."""
    generator, valid, accepted = random.Random(seed), pack(REQUEST), 0
    for _ in range(messages):
        try:
            unpack(hostile(generator, valid))
            accepted += 1
        except WireError as error:
            assert len(str(error)) < 400
    return accepted


def test_a_few_thousand_hostile_messages() -> None:
    # Damage inside an image or a number leaves a valid message, so some are accepted.
    assert 0 < swallow(4000, seed=1) < 2000


@pytest.mark.slow
def test_a_hundred_thousand_hostile_messages_leave_no_memory_behind() -> None:
    swallow(2000, seed=2)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    swallow(100_000, seed=3)
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 200_000 and peak - before < 2_000_000


@settings(max_examples=60, deadline=None)
@given(PLAIN)
def test_plain_values_read_as_msgpack_itself_reads_them(value: Any) -> None:
    encoded = msgpack.packb(value)
    assert encoded is not None
    ours, theirs = unpack(encoded), msgpack.unpackb(encoded, strict_map_key=False)
    assert repr(ours) == repr(theirs)  # the text of a value tells NaN, 1 from 1.0 and True, and the order of keys


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64))
def test_what_is_accepted_is_what_msgpack_accepts(encoded: bytes) -> None:
    try:
        ours = unpack(encoded)
    except WireError:
        return
    assert repr(ours) == repr(msgpack.unpackb(encoded, strict_map_key=False))


@pytest.mark.parametrize(
    "encoded",
    [
        b"\xdd\x00\xff\xff\xff" * 3_000_000,
        b"\xdd\xff\xff\xff\xff" + b"\x90" * 1_000_000,
        b"\xdf\x7f\xff\xff\xff" + b"\x00" * 1_000_000,
        b"\x91" * 5_000_000,
        b"\xc6\xff\xff\xff\xff" + b"\x00" * 100,
        b"\xdd\x00\x0f\x42\x40" + b"\x01" * 1_000_000,
        array_of("<f8", [2**20, 2**20], b""),
        array_of("|u1", [10**9, 0, 10**9], b""),
    ],
    ids=[
        "nested lists",
        "a long list",
        "a long map",
        "depth",
        "bytes",
        "many values",
        "a large array",
        "empty but huge",
    ],
)
def test_headers_that_promise_too_much_cost_nothing(encoded: bytes) -> None:
    tracemalloc.start()
    started = time.perf_counter()
    with pytest.raises(WireError):
        unpack(encoded)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000 and time.perf_counter() - started < 3.0


@pytest.mark.parametrize(
    ("encoded", "words"),
    [
        (b"\x82\x01\x02\x01\x03", "the key 1 comes twice"),
        (b"\x81\xc0\x01", "a map's key is a NoneType"),
        (b"\x81\x90\x01", "a map's key is a list"),
        (b"\xd6\xff\x00\x00\x00\x00", "extension type"),
        (b"\xa2\xff\xfe", "not UTF-8"),
        (b"\x01\x02", "1 bytes follow the message"),
        (b"\x92\x01", "2 values are announced where 1 bytes are left"),
        (array_of("<U1", [1], struct.pack("<I", 0x110000)), "no character"),
        (msgpack.packb({b"__npgeneric__": True, b"data": 300, b"dtype": "|i1"}), "cannot hold"),
        (msgpack.packb({b"__npgeneric__": True, b"data": [1], b"dtype": "<f4"}), "came with a list"),
        (msgpack.packb({b"__ndarray__": True, b"data": b"", b"dtype": "<f4"}), "has the keys"),
    ],
)
def test_refusals_say_what_is_wrong(encoded: bytes, words: str) -> None:
    with pytest.raises(WireError, match=words):
        unpack(encoded)


def test_limits() -> None:
    small = pack({"x": np.zeros(100, np.uint8), "y": [[[1]]]})
    for limits, words in (
        (Limits(array_bytes=99), "array has 100 bytes; the limit is 99"),
        (Limits(items=12), "more than 12 values"),
        (Limits(depth=3), "nested more than 3 deep"),
        (Limits(message_bytes=60), "limit is 60"),
    ):
        with pytest.raises(WireError, match=words):
            unpack(small, limits=limits)
    unpack(small, limits=Limits(array_bytes=100, items=30, depth=4, message_bytes=len(small)))


def test_views_share_the_message_and_copies_do_not() -> None:
    encoded = pack({"image": np.arange(60_000, dtype=np.uint8), "state": np.zeros(4, np.float32)})
    view, copy = unpack(encoded, copy=False), unpack(encoded)
    np.testing.assert_array_equal(view["image"], copy["image"])
    assert not view["image"].flags.writeable and not view["image"].flags.owndata
    assert copy["image"].flags.owndata and view["state"].flags.owndata and view["state"].flags.aligned


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("<f4", [0, 15_000_000, 15_000_000]), ("|u1", [15_000_000, 0, 15_000_000, 15_000_000]), ("<f8", [0, 64_000_000]),
        ("|u1", [0, -1]), ("|u1", [True, 0]), ("|u1", [0, 2**63]), ("|u1", [0] * 33), ("|u1", {}), ("|u1", None),
        ("<U999999", [0, 60_000_000]), ("<M8[s]", [0, 60_000_000]),
    ],
)  # fmt: skip
def test_shapes_of_which_no_array_can_be_made(dtype: str, shape: Any) -> None:
    for copy in (True, False):
        with pytest.raises(WireError, match="shape"):
            unpack(array_of(dtype, shape, b""), copy=copy)


def test_values_that_the_protocol_does_not_carry() -> None:
    for value in (msgpack.ExtType(5, b"x"), msgpack.ExtType(9, b"x" * 12), msgpack.Timestamp(5)):
        encoded = msgpack.packb({"a": value})
        assert encoded is not None
        with pytest.raises(WireError, match="an extension type"):
            unpack(encoded)
    for beginning in (b"\x91", b"\x81\xa1a", b"\xdd\0\0\0\1", b"\xdf\0\0\0\1\xa1a"):
        with pytest.raises(WireError, match="nested more than 24 deep"):
            unpack(beginning * 1_000_000 + b"\xc0")
    with pytest.raises(WireError, match="comes twice"):
        unpack(b"\x82\xa1a\x01\xa1a\x02")
