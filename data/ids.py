"""Which videos are meant: the lines of a text file, or the ids of a data set."""

from __future__ import annotations

from pathlib import Path

from vidsim.common.errors import UserError
from vidsim.data.arrow import open_videos
from vidsim.data.embeddings import repeated, shown
from vidsim.data.rows import is_plain_line
from vidsim.data.schema import MANIFEST_FILE


def read_ids(source: str | Path) -> list[str]:
    """Read ids from a text file, a data set folder, or a folder of data sets (in the order of their names).

    Raises:
        UserError: Nothing there, no ids, a line that is not one id (naming it), ids that occur twice.
    """
    source = Path(source)
    if source.is_dir():
        is_data_set = (source / MANIFEST_FILE).exists()
        folders = [source] if is_data_set else sorted(path.parent for path in source.glob(f"*/{MANIFEST_FILE}"))
        if not folders:
            fix = "name a data set folder, a folder of them, or a text file with one id on each line"
            raise UserError(f"holds no data set (no {MANIFEST_FILE})", file=source, fix=fix)
        ids = [video for folder in folders for video in open_videos(folder).ids().to_pylist()]
    else:
        ids = _read_lines(source)
    if not ids:
        raise UserError("holds no ids", file=source, fix="write one video id on each line")
    twice = repeated(ids)
    if twice:
        what = f"{len(twice):,} ids occur more than once: {shown(twice)}"
        raise UserError(what, file=source, fix="keep one line for each id")
    return ids


def _read_lines(path: Path) -> list[str]:
    """The lines of a file; blank ones may only stand at its end."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise UserError("no such file or folder", file=path) from None
    except UnicodeDecodeError as error:
        raise UserError(f"is not UTF-8 ({error})", file=path) from None
    except OSError as error:
        raise UserError(f"cannot be read ({error})", file=path) from None
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, 1):
        if not is_plain_line(line):
            raise UserError(f"{line!r:.60} is not one id", file=path, record=number, fix="one id on each line")
    return lines
