"""`vidsim convert`: finds the converter and hands the arguments over."""

from __future__ import annotations

import sys

from vidsim.common.errors import UserError

_USAGE = """\
usage: vidsim convert {aiac,table} ...

Turn source files into a data set folder.

  aiac    the files of AIAC 2021 Track 1: TFRecords, label.tsv, tag_list.txt
  table   your own titles, texts and tags (JSONL, CSV, TSV, Parquet), with or without features or pictures

examples:
  vidsim convert aiac SRC --out data/aiac
  vidsim convert table videos.jsonl --out data/mine
  vidsim convert aiac --help"""


def main(argv: list[str] | None = None) -> int:
    """Entry of `vidsim convert`.

    Raises:
        UserError: No such converter.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    match words[0] if words else None:
        case None:
            print(_USAGE, file=sys.stderr)
            return 2
        case "-h" | "--help":
            print(_USAGE)
            return 0
        case "aiac":
            from vidsim.data.convert.aiac import main as command
        case "table":
            from vidsim.data.convert.table import main as command
        case other:
            raise UserError(f"there is no converter {other!r}", fix="use aiac or table")
    return command(words[1:])
