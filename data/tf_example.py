"""Decode and encode `tf.train.Example`, the content of a TFRecord record, without TensorFlow.

The message is `Example{Features{map<string, Feature>}}`, a `Feature` being a list of bytes, of float or of
int64 (tensorflow/core/example/example.proto), in the protobuf wire format.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vidsim.common.errors import UserError

# Features and values in one record: a hostile record of two-byte values must not fill the memory.
MAX_VALUES = 100_000

FeatureValues = list[bytes] | list[int] | list[float]
Features = Mapping[str, Sequence[bytes] | Sequence[int] | Sequence[float]]


class _MalformedError(Exception):
    """Bytes that are no `Example`, at a position inside the record's data."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.message, self.position = message, position


def parse_example(
    data: bytes,
    *,
    file: str | Path | None = None,
    record: int | None = None,
    offset: int = 0,
    max_values: int = MAX_VALUES,
) -> dict[str, FeatureValues]:
    """Decode an `Example` into feature name -> list of bytes, int or float.

    Every value of a bytes feature is kept, with its trailing zero bytes. A feature without values is an empty
    list. Unknown fields are skipped, as protobuf asks; groups, which `Example` never has, are refused, and so
    is a feature that stands twice.

    Args:
        data: The record's data.
        file: Named in errors.
        record: Record number, named in errors.
        offset: Byte of the file where `data` begins (`Record.data_offset`), for the byte named in errors.
        max_values: Most features and values accepted.

    Raises:
        UserError: Not a well-formed `Example`; names file, record and byte.
    """
    try:
        return _ExampleParser(data, max_values).parse()
    except _MalformedError as error:
        place = offset + error.position
        raise UserError(
            f"is no well-formed tf.train.Example: {error.message} (at byte {place:,})",
            file=file,
            record=record,
        ) from None


class _ExampleParser:
    """Recursive descent, of fixed depth, over the bytes of one `Example`."""

    def __init__(self, data: bytes, max_values: int) -> None:
        self._data = data
        self._values_left = max_values

    def parse(self) -> dict[str, FeatureValues]:
        result: dict[str, FeatureValues] = {}
        for number, wire, start, stop in self._fields(0, len(self._data)):
            if number == 1 and wire == 2:  # Example.features
                for inner, inner_wire, entry, end in self._fields(start, stop):
                    if inner == 1 and inner_wire == 2:  # Features.feature, a map entry
                        self._entry(entry, end, result)
        return result

    def _entry(self, start: int, stop: int, result: dict[str, FeatureValues]) -> None:
        key = ""
        parts = []
        for number, wire, begin, end in self._fields(start, stop):
            if wire != 2:
                continue
            if number == 1:
                try:
                    key = self._data[begin:end].decode()
                except UnicodeDecodeError:
                    raise _MalformedError("the name of a feature is not UTF-8", begin) from None
            elif number == 2:
                parts.append((begin, end))
        if key in result:
            raise _MalformedError(f"the feature {key!r:.60} stands twice", start)
        self._count(1, start)
        result[key] = self._feature(parts)

    def _feature(self, parts: list[tuple[int, int]]) -> FeatureValues:
        kind = 0
        values: list[bytes] = []
        numbers: list[int] = []
        floats: list[float] = []
        for start, stop in parts:
            for number, wire, begin, end in self._fields(start, stop):
                if wire != 2 or number not in (1, 2, 3):
                    continue
                if number != kind:  # a oneof: the last kind set wins
                    kind = number
                    values, numbers, floats = [], [], []
                if kind == 1:
                    self._bytes_list(begin, end, values)
                elif kind == 2:
                    self._float_list(begin, end, floats)
                else:
                    self._int64_list(begin, end, numbers)
        if kind == 2:
            return floats
        return numbers if kind == 3 else values

    def _bytes_list(self, start: int, stop: int, values: list[bytes]) -> None:
        data = self._data
        for number, wire, begin, end in self._fields(start, stop):
            if number == 1 and wire == 2:
                self._count(1, begin)
                values.append(data[begin:end])

    def _float_list(self, start: int, stop: int, values: list[float]) -> None:
        for number, wire, begin, end in self._fields(start, stop):
            if number != 1 or wire not in (2, 5):
                continue
            count, rest = divmod(end - begin, 4)
            if rest:
                raise _MalformedError(
                    f"a packed list of floats is {end - begin} bytes long, not a multiple of 4", begin
                )
            self._count(count, begin)
            values += struct.unpack_from(f"<{count}f", self._data, begin)

    def _int64_list(self, start: int, stop: int, values: list[int]) -> None:
        for number, wire, begin, end in self._fields(start, stop):
            if number != 1 or wire not in (0, 2):
                continue
            while begin < end:
                value, after = self._varint(begin, end)
                self._count(1, begin)
                values.append(value - 2**64 if value >= 2**63 else value)
                begin = after

    def _count(self, num: int, position: int) -> None:
        self._values_left -= num
        if self._values_left < 0:
            raise _MalformedError("has too many features or values", position)

    def _fields(self, position: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """Fields of the message in `data[position:stop]`: number, wire type, begin and end of the content."""
        data = self._data
        while position < stop:
            begin = position
            key = data[position]
            position += 1
            if key >= 0x80:
                key, position = self._varint(begin, stop)
            wire = key & 7
            number = key >> 3
            if not 0 < number < 2**29:
                raise _MalformedError(f"{number} is no field number", begin)
            if wire == 2:
                length, position = self._varint(position, stop)
                end = position + length
            elif wire == 0:
                end = self._varint(position, stop)[1]
            elif wire == 1:
                end = position + 8
            elif wire == 5:
                end = position + 4
            else:
                raise _MalformedError(f"wire type {wire} (groups are not supported)", begin)
            if end > stop:
                raise _MalformedError(f"field {number} is cut off: it ends {end - stop:,} bytes too late", begin)
            yield number, wire, position, end
            position = end

    def _varint(self, position: int, stop: int) -> tuple[int, int]:
        """A base-128 number of at most 64 bits, and the position after it."""
        begin = position
        result = shift = 0
        while position < stop:
            byte = self._data[position]
            position += 1
            result |= (byte & 0x7F) << shift
            if byte < 0x80:
                if result >= 2**64:
                    break
                return result, position
            shift += 7
            if shift == 70:
                break
        else:
            raise _MalformedError("a number is cut off", begin)
        raise _MalformedError("a number is longer than 64 bits", begin)


def encode_example(features: Features) -> bytes:
    """A `tf.train.Example` in the protobuf wire format, numbers packed, features in the order given.

    A feature without values is written as an empty int64 list.

    Raises:
        UserError: Names the feature whose values are not all bytes, all int (64 bits) or all float.
    """
    entries = []
    for name, values in features.items():
        feature = _delimited(2, _encode_feature(name, values))
        entries.append(_delimited(1, _delimited(1, name.encode()) + feature))
    return _delimited(1, b"".join(entries))


def _encode_feature(name: str, values: Sequence[bytes] | Sequence[int] | Sequence[float]) -> bytes:
    kinds = {type(value) for value in values}
    if not values:
        return _delimited(3, b"")
    if kinds == {bytes}:
        return _delimited(1, b"".join(_delimited(1, value) for value in values if isinstance(value, bytes)))
    if kinds == {float}:
        return _delimited(2, _delimited(1, struct.pack(f"<{len(values)}f", *values)))
    if kinds == {int}:
        numbers = [value for value in values if isinstance(value, int)]
        if not -(2**63) <= min(numbers) <= max(numbers) < 2**63:
            raise UserError("a value does not fit 64 bits", field=name)
        return _delimited(3, _delimited(1, b"".join(_encode_varint(value % 2**64) for value in numbers)))
    found = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise UserError(f"must be all bytes, all int or all float, holds {found}", field=name)


def _delimited(number: int, content: bytes) -> bytes:
    return b"".join((bytes((number << 3 | 2,)), _encode_varint(len(content)), content))


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
