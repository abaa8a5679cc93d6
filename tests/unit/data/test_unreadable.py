"""Every reader of text files names one that may not be read."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vidsim.common.errors import UserError
from vidsim.data.convert.rows import read_rows
from vidsim.data.cowatch_sessions import SessionColumns, read_sessions
from vidsim.data.pairs import read_pairs
from vidsim.data.tags import TagVocabulary

READERS: dict[str, Callable[[Path], Any]] = {
    "rows": read_rows,
    "sessions": lambda path: list(read_sessions(path, SessionColumns())),
    "pairs": read_pairs,
    "tags": TagVocabulary.from_file,
}


@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_may_not_be_read_is_one_error(reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tsv").write_text("a", encoding="utf-8")

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "a.tsv")

    monkeypatch.setattr("builtins.open", refuse)  # root may read everything
    monkeypatch.setattr("io.open", refuse)  # as Path.open does
    with pytest.raises(UserError, match=r"a\.tsv: cannot be read \(Permission denied\)"):
        READERS[reader](tmp_path / "a.tsv")
