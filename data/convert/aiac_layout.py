"""Where the competition's files lie."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vidsim.common.errors import UserError

PARTS = ("pointwise", "pairwise", "test_a", "test_b")
LABELLED_PARTS = ("pointwise", "pairwise")
"""Parts whose records have tags and a category."""
LABELS, TAG_LIST = "pairwise/label.tsv", "tag_list.txt"
_TAG_LIST_FOLDERS = ("", "pointwise", "pairwise", "..")


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The files that are there.

    Attributes:
        files: TFRecord files of each part, in the order of their numbers; none for a part that is not there.
        labels: `label.tsv`.
        tag_list: `tag_list.txt`.
    """

    files: Mapping[str, Sequence[Path]]
    labels: Path | None
    tag_list: Path | None

    def describe(self) -> str:
        """What is there and what is not, on one line."""
        found = [f"{part} ({len(paths)} TFRecord)" for part, paths in self.files.items() if paths]
        missing = [part for part, paths in self.files.items() if not paths]
        missing += _gaps(self.files["pointwise"])
        for name, path in ((LABELS, self.labels), (TAG_LIST, self.tag_list)):
            (found if path else missing).append(name)
        return f"found: {', '.join(found)}; not there: {', '.join(missing) or 'nothing'}"


def find_sources(folder: Path, tag_list: Path | None = None) -> Sources:
    """Look for the competition's files.

    Args:
        folder: What holds pointwise/, pairwise/, test_a/, test_b/; any of them may be absent.
        tag_list: The tag list, if it lies elsewhere.

    Raises:
        UserError: No such folder, no TFRecord file in it, or tag lists that differ.
    """
    if not folder.is_dir():
        raise UserError("no such folder", file=folder)
    files = {part: sorted((folder / part).glob("*.tfrecords"), key=_number) for part in PARTS}
    if not any(files.values()):
        raise UserError(
            "holds none of the competition's TFRecord files",
            file=folder,
            fix="name the folder that holds pointwise/, pairwise/, test_a/ or test_b/",
        )
    labels = folder / LABELS
    return Sources(
        files=files,
        labels=labels if labels.is_file() else None,
        tag_list=_find_tag_list(folder, tag_list),
    )


def _gaps(paths: Sequence[Path]) -> list[str]:
    """Pointwise files whose number is lower than that of one that is there."""
    numbers = {_number(path)[0] for path in paths}
    absent = sorted(set(range(max(numbers, default=-1))) - numbers)
    return [f"pointwise/pretrain_{number}.tfrecords" for number in absent]


def _number(path: Path) -> tuple[int, str]:
    match = re.search(r"(\d+)\.tfrecords$", path.name)
    return int(match[1]) if match else -1, path.name


def _find_tag_list(folder: Path, given: Path | None) -> Path | None:
    if given is not None:
        if not given.is_file():
            raise UserError("no such file", file=given)
        return given
    paths = [folder / place / TAG_LIST for place in _TAG_LIST_FOLDERS]
    paths = [path for path in paths if path.is_file()]
    if len({path.read_bytes() for path in paths}) > 1:
        raise UserError(f"differs from {paths[1]}", file=paths[0], fix="say which one by --tag_list")
    return paths[0] if paths else None
