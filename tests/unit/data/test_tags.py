from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vidsim.common.errors import UserError
from vidsim.data.arrow import open_videos
from vidsim.data.tags import TagVocabulary

Write = Callable[..., Path]
TAGS = [["b", "a"], [], ["b", "c", "d"], ["d", "b"], ["猫"]]  # b 3, d 2, a c 猫 1


@pytest.fixture
def folder(write_data_set: Write) -> Path:
    return write_data_set([{"id": str(n), "tags": tags} for n, tags in enumerate(TAGS)], num_shards=2)


def test_build_takes_the_most_frequent(folder: Path) -> None:
    videos = open_videos(folder)
    vocabulary = TagVocabulary.build(videos)
    assert vocabulary.tags == ("b", "d", "a", "c", "猫")
    assert vocabulary.counts == (3, 2, 1, 1, 1)
    assert TagVocabulary.build(videos, size=3).tags == ("b", "d", "a")
    assert TagVocabulary.build(videos, min_count=2).tags == ("b", "d")
    assert TagVocabulary.build(videos, size=1, min_count=2).size == 1


def test_encode() -> None:
    vocabulary = TagVocabulary(("x", "y", "z"))
    assert vocabulary.encode(["z", "nothing", "x", "z"]) == [0, 2]
    assert vocabulary.encode([]) == []
    assert vocabulary.size == 3


def test_saved_vocabulary_comes_back(folder: Path, tmp_path: Path) -> None:
    built = TagVocabulary.build(open_videos(folder))
    built.save(tmp_path / "tags.txt")
    assert (tmp_path / "tags.txt").read_text().splitlines()[0] == "b\t3"
    assert TagVocabulary.from_file(tmp_path / "tags.txt") == built
    plain = TagVocabulary(("x", "👨‍👩‍👧", "two words"))
    plain.save(tmp_path / "plain.txt")
    assert TagVocabulary.from_file(tmp_path / "plain.txt") == plain


def test_competition_list(tmp_path: Path) -> None:
    path = tmp_path / "tag_list.txt"
    path.write_bytes(b"\xef\xbb\xbf10\tname\r\n7\t12\r\n8")
    vocabulary = TagVocabulary.from_file(path)
    assert vocabulary.tags == ("10", "7", "8")
    assert vocabulary.counts == ()  # not every line has one
    assert TagVocabulary.from_file(path, size=2).tags == ("10", "7")
    assert TagVocabulary.from_file(path, size=9).size == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no tags"),
        (b"\n", "line 1, field 'tags': is blank"),
        (b"a\n\nb\n", "line 2, field 'tags': is blank"),
        (b"a\n  \n", "line 2, field 'tags': is blank"),
        (b"\t5\n", "line 1, field 'tags': is blank"),
        (b"a\nb \n", "line 2, field 'tags': 'b ' holds outer blanks"),
        (b"a\nb\x00c\n", "line 2, field 'tags': .*control characters"),
        (b"a\nb\na\t3\n", "line 3, field 'tags': the tag 'a' stands already in line 1"),
        (b"a\n\xff\n", "is not UTF-8"),
    ],
)
def test_planted_faults(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "tags.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        TagVocabulary.from_file(tmp_path / "tags.txt")


def test_nothing_to_build_from(write_data_set: Write, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tag occurs 4 times or more"):
        TagVocabulary.build(open_videos(folder), min_count=4)
    with pytest.raises(UserError, match="the videos have no tags"):
        TagVocabulary.build(open_videos(write_data_set([{"id": "a"}], "untagged")))
    with pytest.raises(UserError, match="field 'size': is 0"):
        TagVocabulary.build(open_videos(folder), size=0)
    with pytest.raises(UserError, match="no such file"):
        TagVocabulary.from_file(tmp_path / "nothing.txt")
    with pytest.raises(UserError, match="stands twice"):
        TagVocabulary(("a", "a"))
