"""The codec: the protocol's own bytes, round trips, and everything it must refuse."""

from __future__ import annotations

import math
import pickle
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lamp_client.errors import WireError
from lamp_client.wire import Limits, pack, unpack

VECTOR = (
    "81b16f62736572766174696f6e2f737461746584c40b5f5f6e6461727261795f5fc3c40464617461c408000000000000803fc405647479"
    "7065a33c6634c40573686170659102"
)
DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=8),
    hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)),
)
MESSAGES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
)


def same(left: Any, right: Any) -> bool:
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


def test_the_protocols_test_vector() -> None:
    message = {"observation/state": np.array([0, 1], dtype=np.float32)}
    assert pack(message).hex() == VECTOR
    assert same(unpack(bytes.fromhex(VECTOR)), message)


@settings(max_examples=30, deadline=None)
@given(MESSAGES)
def test_what_is_packed_comes_back(message: Any) -> None:
    assert same(unpack(pack(message)), message)


def test_scalars_keep_their_type_and_strided_arrays_their_values() -> None:
    message = unpack(pack({"a": np.float32(1.5), "b": np.int16(-3), "c": np.arange(12).reshape(3, 4)[::-1, ::2]}))
    assert type(message["a"]) is np.float32 and type(message["b"]) is np.int16
    np.testing.assert_array_equal(message["c"], np.arange(12).reshape(3, 4)[::-1, ::2])


def test_arrays_that_come_back_can_be_written_to() -> None:
    array = unpack(pack(np.zeros(3)))
    array[0] = 1.0
    assert array[0] == 1.0


@pytest.mark.parametrize(
    "value",
    [
        np.array([object()]),
        np.array([1 + 2j]),
        np.complex64(1j),
        np.zeros(2, dtype=[("x", "f4")]),
        np.void(b"abc"),
        {1, 2},
        object(),
    ],
    ids=["object", "complex", "complex scalar", "record", "void scalar", "set", "any object"],
)
def test_values_outside_the_protocol_are_not_sent(value: Any) -> None:
    with pytest.raises(WireError):
        pack({"x": value})


def array_bytes(**fields: Any) -> bytes:
    array = {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": "<f4", b"shape": [2]}
    encoded = msgpack.packb({**array, **{key.encode(): value for key, value in fields.items()}})
    assert encoded is not None
    return encoded


@pytest.mark.parametrize(
    "encoded",
    [
        array_bytes(dtype="|O"),
        array_bytes(dtype="<c8", shape=[1]),
        array_bytes(dtype="|V8", shape=[1]),
        array_bytes(dtype="f4,f4", shape=[1]),
        array_bytes(dtype="nonsense"),
        array_bytes(dtype=7),
        array_bytes(shape=[3]),
        array_bytes(shape=[-1]),
        array_bytes(shape=[-2, -1]),
        array_bytes(shape=2),
        array_bytes(shape=[1] * 70 + [2]),
        array_bytes(data="text"),
        array_bytes(dtype="<U0", data=b"", shape=[2**40]),
        b"",
        b"\x81",
        b"\xc1",
        pickle.dumps({"a": 1}),
    ],
)
def test_malformed_bytes_are_refused(encoded: bytes) -> None:
    with pytest.raises(WireError):
        unpack(encoded)


def test_messages_over_the_limit_are_refused_both_ways() -> None:
    message = pack(np.zeros(100, dtype=np.uint8))
    with pytest.raises(WireError, match="limit is 50"):
        pack(np.zeros(100, dtype=np.uint8), limits=Limits(message_bytes=50))
    with pytest.raises(WireError, match="limit is 50"):
        unpack(message, limits=Limits(message_bytes=50))


def test_infinities_survive() -> None:
    assert unpack(pack({"x": math.inf}))["x"] == math.inf
