from __future__ import annotations

import math
import random
import struct
from typing import Any

import pytest

from vidsim.common.errors import UserError
from vidsim.data.tf_example import encode_example, parse_example


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field, by hand: content shorter than 128 bytes."""
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


def example(*entries: bytes) -> bytes:
    return field(1, b"".join(field(1, entry) for entry in entries))


def entry(name: bytes, feature: bytes) -> bytes:
    return field(1, name) + field(2, feature)


def test_hand_built_bytes_keep_every_value_and_trailing_zeros() -> None:
    feature = field(1, b"\x0a\x03ab\x00" + b"\x0a\x00" + b"\x0a\x02\x00\x00")
    assert parse_example(example(entry(b"f", feature))) == {"f": [b"ab\x00", b"", b"\x00\x00"]}


def test_hand_built_example_is_what_the_writer_writes() -> None:
    # Example{Features{"a": BytesList["hi\0"], "b": Int64List packed [1, 300], "c": empty Int64List}}
    expected = bytes.fromhex(
        "0a25"  # features, 14 + 14 + 9 bytes
        "0a0c 0a0161 1207 0a05 0a03686900"
        "0a0c 0a0162 1207 1a05 0a0301ac02"
        "0a07 0a0163 1202 1a00"
    )
    written = encode_example({"a": [b"hi\x00"], "b": [1, 300], "c": []})
    assert written == expected
    assert parse_example(written) == {"a": [b"hi\x00"], "b": [1, 300], "c": []}


def test_a_map_entry_may_lack_name_and_value() -> None:
    assert parse_example(example(b"")) == {"": []}


def test_int64_packed_unpacked_and_negative() -> None:
    minus_one = b"\xff" * 9 + b"\x01"
    packed = field(3, field(1, b"\x05" + minus_one))
    unpacked = field(3, b"\x08\x05" + b"\x08" + minus_one)
    assert parse_example(example(entry(b"n", packed))) == {"n": [5, -1]}
    assert parse_example(example(entry(b"n", unpacked))) == {"n": [5, -1]}
    # A list may come in pieces, each packed or not.
    both = field(3, b"\x08\x07" + field(1, b"\x08\x09"))
    assert parse_example(example(entry(b"n", both))) == {"n": [7, 8, 9]}


def test_int64_extremes_round_trip() -> None:
    values = [0, 1, -1, 127, 128, 2**63 - 1, -(2**63)]
    assert parse_example(encode_example({"n": values})) == {"n": values}


def test_floats_packed_and_unpacked() -> None:
    packed = field(2, field(1, struct.pack("<2f", 1.5, -2.0)))
    unpacked = field(2, b"\x0d" + struct.pack("<f", 1.5) + b"\x0d" + struct.pack("<f", -2.0))
    assert parse_example(example(entry(b"x", packed))) == {"x": [1.5, -2.0]}
    assert parse_example(example(entry(b"x", unpacked))) == {"x": [1.5, -2.0]}
    (value,) = parse_example(encode_example({"x": [math.inf]}))["x"]
    assert value == math.inf


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_empty_lists_of_every_kind(kind: int) -> None:
    assert parse_example(example(entry(b"e", field(kind, b"")))) == {"e": []}


def test_oneof_the_last_kind_wins_and_the_same_kind_merges() -> None:
    ints, data = field(3, b"\x08\x01"), field(1, b"\x0a\x01z")
    assert parse_example(example(entry(b"o", ints + data))) == {"o": [b"z"]}
    assert parse_example(example(entry(b"o", data + data))) == {"o": [b"z", b"z"]}
    # The value of a map entry may itself come in two pieces.
    split = field(1, b"o") + field(2, data) + field(2, ints + ints)
    assert parse_example(example(split)) == {"o": [1, 1]}


def test_unknown_fields_of_every_wire_type_are_skipped() -> None:
    unknown = b"\x78\x96\x01" + b"\x79" + bytes(8) + field(15, b"junk") + b"\x7d" + bytes(4)
    # A known number with another wire type counts as unknown, too.
    other_wire = b"\x08\x2a"
    feature = unknown + field(1, unknown + b"\x0a\x01a")
    record = unknown + other_wire + field(1, other_wire + unknown + field(1, unknown + entry(b"k", feature)))
    assert parse_example(record) == {"k": [b"a"]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x0a", "a number is cut off"),
        (b"\x0a\x05ab", "cut off: it ends 3 bytes too late"),
        (field(1, b"\x0a\x09abc"), "cut off"),
        (b"\x0a" + b"\xff" * 10, "longer than 64 bits"),
        (b"\x0a" + b"\xff" * 9 + b"\x02", "longer than 64 bits"),
        (b"\x0b", "wire type 3"),
        (b"\x0c", "wire type 4"),
        (b"\x0e", "wire type 6"),
        (b"\x0f", "wire type 7"),
        (b"\x02\x00", "0 is no field number"),
        (b"\x80\x80\x80\x80\x80\x01\x00", "no field number"),
        (b"\x09\x00", "cut off"),
        (b"\x0d\x00", "cut off"),
        (example(entry(b"x", field(2, field(1, b"abc")))), "not a multiple of 4"),
        (example(entry(b"n", field(3, field(1, b"\x80")))), "a number is cut off"),
        (example(entry(b"\xff", b"")), "not UTF-8"),
        (example(entry(b"t", b""), entry(b"t", b"")), "the feature 't' stands twice"),
    ],
)
def test_malformed_examples_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_example(data)


def test_error_names_file_record_and_byte() -> None:
    with pytest.raises(UserError) as caught:
        parse_example(b"\x0a\x05ab", file="a.tfrecords", record=7, offset=1000)
    assert caught.value.file == "a.tfrecords"
    assert caught.value.record == 7
    assert "at byte 1,000" in str(caught.value)


def test_number_of_values_is_bounded() -> None:
    data = encode_example({"n": [1] * 50, "b": [b""] * 49})
    assert len(parse_example(data, max_values=101)["n"]) == 50  # two features and 99 values
    with pytest.raises(UserError, match="too many features or values"):
        parse_example(data, max_values=100)


@pytest.mark.parametrize("values", [[1, b"a"], [1, 1.0], ["text"], [True], [None]])
def test_writer_refuses_other_types(values: list[Any]) -> None:
    with pytest.raises(UserError, match="field 'f': must be all bytes, all int or all float"):
        encode_example({"f": values})


def test_writer_refuses_integers_beyond_64_bits() -> None:
    for value in (2**63, -(2**63) - 1):
        with pytest.raises(UserError, match="does not fit 64 bits"):
            encode_example({"f": [value]})


def protobuf_example() -> Any:
    """The message class, built from descriptors: what TensorFlow itself would read and write."""
    pytest.importorskip("google.protobuf")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")

    def message(name: str) -> Any:
        return file.message_type.add(name=name)

    bytes_list, float_list, int64_list = message("BytesList"), message("FloatList"), message("Int64List")
    for descriptor, kind in ((bytes_list, 12), (float_list, 2), (int64_list, 3)):
        descriptor.field.add(name="value", number=1, type=kind, label=3)
    feature = message("Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("BytesList", "FloatList", "Int64List"), 1):
        feature.field.add(name=name.lower(), number=number, type=11, label=1, type_name=f".t.{name}", oneof_index=0)
    features = message("Features")
    map_entry = features.nested_type.add(name="FeatureEntry")
    map_entry.options.map_entry = True
    map_entry.field.add(name="key", number=1, type=9, label=1)
    map_entry.field.add(name="value", number=2, type=11, label=1, type_name=".t.Feature")
    features.field.add(name="feature", number=1, type=11, label=3, type_name=".t.Features.FeatureEntry")
    message("Example").field.add(name="features", number=1, type=11, label=1, type_name=".t.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


def test_agrees_with_protobuf_both_ways() -> None:
    example_class = protobuf_example()
    features = {"frames": [b"\x01\x00", b"", b"\x00" * 300], "tags": [3, -9, 2**40], "x": [0.5, -1.25]}
    theirs = example_class()
    theirs.features.feature["frames"].byteslist.value.extend(features["frames"])
    theirs.features.feature["tags"].int64list.value.extend(features["tags"])
    theirs.features.feature["x"].floatlist.value.extend(features["x"])
    theirs.features.feature["none"].int64list.SetInParent()
    assert parse_example(theirs.SerializeToString()) == {**features, "none": []}
    ours = example_class.FromString(encode_example({**features, "none": []}))
    assert ours == theirs


def test_mutants_mean_the_same_to_protobuf_or_are_refused() -> None:
    example_class = protobuf_example()
    from google.protobuf.message import DecodeError

    rng = random.Random(0)
    good = encode_example({"id": [b"12"], "n": [5, -9, 10**6], "x": [0.5], "f": [rng.randbytes(30)] * 2, "e": []})
    num_same = 0
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(rng.randint(1, 2)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            ours = parse_example(bytes(data))
        except UserError:
            continue  # what we refuse beyond protobuf is a feature that stands twice
        try:
            theirs = example_class.FromString(bytes(data)).features.feature
        except DecodeError:
            pytest.fail(f"read what protobuf refuses: {data.hex()}")
        # This protobuf leaves out a map entry that holds an unknown field; C++, so TensorFlow, keeps it.
        assert set(theirs) <= set(ours)
        for name, feature in theirs.items():
            kind = feature.WhichOneof("kind")
            assert repr(ours[name]) == repr(list(getattr(feature, kind).value) if kind else [])
        num_same += 1
    assert num_same > 800
