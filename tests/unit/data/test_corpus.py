from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from vidsim.common.errors import UserError
from vidsim.data.corpus import open_corpus, read_excluded


def videos(*ids: str) -> list[dict[str, Any]]:
    return [{"id": video_id, "title": f"title of {video_id}", "tags": ["t"]} for video_id in ids]


def opened(*folders: Path, excluded: tuple[str, ...] = (), fraction: float = 0.0) -> Any:
    return open_corpus([str(folder) for folder in folders], excluded=set(excluded), held_out_fraction=fraction)


def test_rows_of_each_folder(write_data_set: Any) -> None:
    first, second = write_data_set(videos("a", "b", "c"), "first"), write_data_set(videos("d", "e"), "second")
    corpus = opened(first, second, first, excluded=("b", "e", "nobody"))
    assert [video["id"] for video in corpus.videos] == ["a", "b", "c", "d", "e"]
    assert {name: rows.tolist() for name, rows in corpus.trainable.items()} == {str(first): [0, 2], str(second): [3]}
    assert corpus.held_out.tolist() == []
    assert corpus.num_excluded == 2


def test_held_out_rows_follow_from_their_ids(write_data_set: Any) -> None:
    ids = [f"video{number}" for number in range(3000)]
    forth, back = write_data_set(videos(*ids), "forth", num_shards=2), write_data_set(videos(*ids[::-1][:2000]), "back")
    straight, other = opened(forth, fraction=0.1), opened(back, fraction=0.1)
    held_out = {ids[row] for row in straight.held_out}
    assert {ids[::-1][row] for row in other.held_out} == held_out & set(ids[1000:])
    assert len(held_out) == pytest.approx(300, abs=60)
    below = int(0.1 * 2**32).to_bytes(4, "big")
    assert held_out == {name for name in ids if hashlib.blake2b(name.encode(), digest_size=4).digest()[::-1] < below}
    # More held out only adds to it; nothing is in both parts or in none.
    assert held_out < {ids[row] for row in opened(forth, fraction=0.2).held_out}
    assert sorted([*straight.held_out, *straight.trainable[str(forth)]]) == list(range(3000))


def test_excluded_rows_are_not_evaluated_on(write_data_set: Any) -> None:
    folder = write_data_set(videos(*(f"video{number}" for number in range(50))))
    held_out = opened(folder, fraction=0.5).held_out
    excluded = f"video{held_out[0]}"
    corpus = opened(folder, fraction=0.5, excluded=(excluded,))
    assert corpus.held_out.tolist() == held_out[1:].tolist()
    assert corpus.num_excluded == 1


def test_nothing_left_names_the_folder(write_data_set: Any) -> None:
    first, second = write_data_set(videos("a"), "first"), write_data_set(videos("b"), "second")
    with pytest.raises(UserError, match=r"second: no row is left to train on.*data\.exclude"):
        opened(first, second, excluded=("b",))


def test_a_video_in_two_folders_is_refused(write_data_set: Any) -> None:
    first, second = write_data_set(videos("a", "b"), "first"), write_data_set(videos("b"), "second")
    with pytest.raises(UserError, match=r"first.*second|second.*first"):
        opened(first, second)


def test_excluded_ids_come_from_lists_and_pairs(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("a\nb\n", encoding="utf-8")
    (tmp_path / "pairs.tsv").write_text("id1\tid2\tscore\nc\td\t4.5\nc\ta\t-1\n", encoding="utf-8")
    assert read_excluded([str(tmp_path / "ids.txt"), str(tmp_path / "pairs.tsv")]) == {"a", "b", "c", "d"}
    assert read_excluded([]) == set()


def test_a_list_of_ids_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("a\n\nb\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"ids\.txt, .*2: '' is not one id"):
        read_excluded([str(tmp_path / "ids.txt")])
