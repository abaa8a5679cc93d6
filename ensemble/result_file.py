"""`result.json` in a zip, read as something a stranger made: strict zip, strict JSON, bounded memory."""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

from vidsim.common.errors import UserError

RESULT_FILE: Final = "result.json"

_BLANKS = re.compile(r"[ \t\n\r]*")
_CHUNK_BYTES = 1 << 20
_NUM_SHOWN = 5


def read_result_text(path: Path, name: str, max_bytes: int) -> str:
    """The text of `result.json`, which must be the only entry of the zip.

    Args:
        path: The zip file.
        name: What to call it in messages.
        max_bytes: The most that may be unpacked (a small zip can unpack to terabytes).

    Raises:
        UserError: Not a zip, damaged, encrypted, other entries, too large, not UTF-8.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entry = _only_entry(archive, name)
            if entry.file_size > max_bytes:
                raise _too_large(name, max_bytes)
            chunks, num_bytes = [], 0
            with archive.open(entry) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    num_bytes += len(chunk)
                    if num_bytes > max_bytes:
                        raise _too_large(name, max_bytes)
                    chunks.append(chunk)
        return b"".join(chunks).decode("utf-8")
    except FileNotFoundError:
        raise UserError("no such file", file=name) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{RESULT_FILE} is not UTF-8 text ({error.reason} at byte {error.start})", file=name) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        raise UserError(f"is not a whole zip file ({error})", file=name) from error


def _only_entry(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    unsafe = [each for each in names if each.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", each)]
    if unsafe:
        raise UserError(f"has an entry outside of the zip: {unsafe[0]!r:.80}", file=name)
    if names != [RESULT_FILE]:
        listed = ", ".join(repr(each)[:80] for each in names[:_NUM_SHOWN]) or "nothing"
        message = f"must hold {RESULT_FILE} at its root and nothing else, holds {len(names)} entries: {listed}"
        raise UserError(message, file=name, fix="write it with `vidsim submit`, or zip the file without its folder")
    entry = entries[0]
    if entry.flag_bits & 1:
        raise UserError("is encrypted", file=name)
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(f"is not packed with deflate (method {entry.compress_type})", file=name)
    return entry


def _too_large(name: str, max_bytes: int) -> UserError:
    return UserError(
        f"{RESULT_FILE} is larger than {max_bytes:,} bytes, which no submission of these ids is", file=name
    )


def entries(text: str, name: str) -> Iterator[tuple[str, Any]]:
    """Each id and its value, one at a time, also where an id stands twice.

    Parsing entry by entry keeps one list of Python floats at a time instead of all of them.

    Raises:
        UserError: Not one JSON object; NaN or Infinity (naming the id).
    """
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    key = ""
    try:
        position = _expect(text, _skip(text, 0), "{")
        if text[position : position + 1] == "}":
            _expect_end(text, position + 1)
            return
        while True:
            key, position = decoder.raw_decode(text, position)
            if not isinstance(key, str):
                raise ValueError("a key is not a string")
            position = _expect(text, _skip(text, position), ":")
            value, position = decoder.raw_decode(text, position)
            yield key, value
            position = _skip(text, position)
            if text[position : position + 1] == "}":
                break
            position = _expect(text, position, ",")
        _expect_end(text, position + 1)
    except (ValueError, RecursionError) as error:
        at = key[:80] if isinstance(key, str) and key else None
        raise UserError(f"{RESULT_FILE} is not strict JSON ({error})", file=name, record=at) from None


def _refuse_constant(token: str) -> NoReturn:
    raise ValueError(f"{token} is no JSON number")


def _skip(text: str, position: int) -> int:
    match = _BLANKS.match(text, position)
    return match.end() if match else position


def _expect(text: str, position: int, character: str) -> int:
    """Step over one character and the blanks after it."""
    if text[position : position + 1] != character:
        raise ValueError(f"{character!r} expected at character {position}")
    return _skip(text, position + 1)


def _expect_end(text: str, position: int) -> None:
    if _skip(text, position) != len(text):
        raise ValueError(f"something follows the object at character {position}")
