from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr

from vidsim.common.errors import UserError
from vidsim.data.pairs import Pairs, read_pairs, tie_ceiling, write_pairs

PAIRS = Pairs(["1", "1", "视频"], ["2", "3", "2"], np.array([0.0, 0.1, 1.0]))


def assert_same(found: Pairs, expected: Pairs) -> None:
    assert found.id1 == expected.id1
    assert found.id2 == expected.id2
    assert found.score.dtype == np.float64
    np.testing.assert_array_equal(found.score, expected.score)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("label.tsv", "1\t2\t0\n1\t3\t0.1\n视频\t2\t1.0\n"),
        ("no_last_line_break.txt", "1\t2\t0\n1\t3\t0.1\n视频\t2\t1.0"),
        ("windows.tsv", "\ufeffid1\tid2\tscore\r\n1\t2\t0\r\n1\t3\t.1\r\n视频\t2\t1\r\n"),
        ("other_order.tsv", "score\tid2\tnote\tid1\n0\t2\tx\t1\n0.1\t3\t\t1\n1e0\t2\tx\t视频\n"),
        ("header.csv", 'id1,id2,score\n1,2,0\n"1",3,0.1\n视频,2,1\n'),
        ("no_header.csv", "1,2,0\n1,3,0.1\n视频,2,1\n"),
    ],
)
def test_formats(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_bytes(content.encode())
    assert_same(read_pairs(tmp_path / name), PAIRS)


def test_parquet_with_integer_ids(tmp_path: Path) -> None:
    table = pa.table({"id2": [2, 3], "id1": [1, 2**63 - 1], "score": pa.array([0, 1], pa.int8())})
    pq.write_table(table, tmp_path / "pairs.parquet")
    expected = Pairs(["1", "9223372036854775807"], ["2", "3"], np.array([0.0, 1.0]))
    assert_same(read_pairs(tmp_path / "pairs.parquet"), expected)


@pytest.mark.parametrize("name", ["pairs.tsv", "pairs.csv", "pairs.parquet"])
def test_written_pairs_come_back_exactly(tmp_path: Path, name: str) -> None:
    pairs = Pairs(["a,b", '"x'], ["c d", "y"], np.array([1 / 3, 1e-17]))
    write_pairs(tmp_path / name, pairs)
    assert_same(read_pairs(tmp_path / name), pairs)


def test_take_and_unique_ids() -> None:
    assert_same(PAIRS.take([2, 0]), Pairs(["视频", "1"], ["2", "2"], np.array([1.0, 0.0])))
    assert len(PAIRS.take(np.array([], dtype=np.int64))) == 0
    assert PAIRS.unique_ids() == ["1", "2", "3", "视频"]


def test_columns_of_other_lengths() -> None:
    with pytest.raises(UserError, match="1 and 2 ids, but 1 scores"):
        Pairs(["1"], ["2", "3"], np.array([0.5]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no pairs"),
        ("id1\tid2\tscore\n", "holds no pairs"),
        ("1\t2\t0\n1\t2\n", r"line 2: 2 fields, 3 expected"),
        ("1\t2\t0\n\n", r"line 2: 1 fields, 3 expected"),
        ("1 2 0.5\n", r"line 1: 1 fields, 3 expected. Fix: separate them by tabs"),
        ("id1\tid2\tscore\tx\n1\t2\t0.5\n", r"line 2: 3 fields, 4 expected"),
        ("1\t2\t0\n1\t\t0\n", r"line 2, field 'id2': is empty"),
        (" \t2\t0\n", r"line 1, field 'id1': is empty"),
        ("1\t2\t0\n1\t3\tx\n", r"line 2, field 'score': 'x' is no number"),
        ("1\t2\t\n", r"line 1, field 'score': '' is no number, and the line is no header"),
        (
            "query\tcandidate\tlabel\n1\t2\t0\n",
            r"line 1, .*'label' is no number, and the line is no header",
        ),
        ("1\t2\t0\n1\t3\tnan\n", r"line 2, field 'score': nan is not finite"),
        ("1\t2\tinf\n", r"line 1, field 'score': inf is not finite"),
        (
            "id1\tid2\tscore\n1\t2\t0\n1\t3\t1.5\n1\t4\t-1\n",
            r"line 3, .*1.5 is not within 0 to 1 \(2 such scores\)",
        ),
    ],
)
def test_planted_faults(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_pairs(path)
    assert caught.value.file == str(path)


def test_other_score_ranges(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("1\t2\t-3\n1\t3\t5\n")
    assert read_pairs(path, score_range=(-3, 5)).score.tolist() == [-3, 5]
    assert read_pairs(path, score_range=None).score.tolist() == [-3, 5]
    with pytest.raises(UserError, match="5 is not within -3 to 4"):
        read_pairs(path, score_range=(-3, 4))


def test_files_that_are_no_pairs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_pairs(tmp_path / "nothing.tsv")
    (tmp_path / "pairs.json").write_text("{}")
    with pytest.raises(UserError, match=r"suffix '\.json' is not known"):
        read_pairs(tmp_path / "pairs.json")
    (tmp_path / "pairs.tsv").write_bytes(b"1\t\xff\t0\n")
    with pytest.raises(UserError, match="is not UTF-8"):
        read_pairs(tmp_path / "pairs.tsv")
    (tmp_path / "pairs.csv").write_text('1,"2,0\n')
    with pytest.raises(UserError, match="is not a CSV file"):
        read_pairs(tmp_path / "pairs.csv")
    (tmp_path / "break.csv").write_text('1,"2\n3",0\n')
    with pytest.raises(UserError, match=r"field 'id2': .*control characters"):
        read_pairs(tmp_path / "break.csv")
    (tmp_path / "pairs.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="is not a Parquet file"):
        read_pairs(tmp_path / "pairs.parquet")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"id1": ["a"], "id2": ["b"]}, "field 'score': needs the columns"),
        ({"id1": ["a"], "id2": ["b"], "score": ["1"]}, "field 'score': must be numbers"),
        (
            {"id1": ["a", "b"], "id2": ["b", "c"], "score": [1.0, None]},
            "field 'score': must be numbers without",
        ),
        ({"id1": [1.5], "id2": ["b"], "score": [1.0]}, "field 'id1': must be text, is double"),
        ({"id1": ["a", "b"], "id2": ["b", None], "score": [1.0, 0.0]}, "record 1, field 'id2': is empty"),
        ({"id1": ["a", " "], "id2": ["b", "c"], "score": [1.0, 0.0]}, "record 1, field 'id1': is empty"),
        ({"id1": ["a\t0"], "id2": ["b"], "score": [1.0]}, "record 0, field 'id1': 'a.*control characters"),
        (
            {"id1": ["a", "b"], "id2": ["b", "c"], "score": [1.0, 2.0]},
            "record 1, field 'score': 2 is not within",
        ),
    ],
)
def test_faults_in_parquet(tmp_path: Path, table: dict[str, list[object]], message: str) -> None:
    pq.write_table(pa.table(table), tmp_path / "pairs.parquet")
    with pytest.raises(UserError, match=message):
        read_pairs(tmp_path / "pairs.parquet")


def test_write_refuses_other_suffixes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"use \.tsv, \.csv or \.parquet"):
        write_pairs(tmp_path / "pairs.xlsx", PAIRS)
    assert not list(tmp_path.iterdir())


def test_tie_ceiling_by_hand() -> None:
    # Groups of 3, 1, 2: 1 - (24 + 0 + 6) / 210.
    assert tie_ceiling([0.0, 1.0, 0.0, 0.5, 1.0, 0.0]) == pytest.approx(np.sqrt(1 - 30 / 210))
    assert tie_ceiling([0.1, 0.2, 0.3]) == 1.0
    for scores in ([0.5, 0.5], [0.5], []):
        with pytest.raises(UserError, match="fewer than two different scores"):
            tie_ceiling(scores)


def test_tie_ceiling_is_reached_and_never_passed() -> None:
    scores = np.repeat([0, 1, 2, 3], [5, 1, 7, 3])
    ceiling = tie_ceiling(scores)
    assert ceiling == pytest.approx(spearmanr(scores, np.arange(16)).statistic)
    generator = np.random.default_rng(0)
    assert max(spearmanr(scores, generator.permutation(16)).statistic for _ in range(50)) < ceiling


def test_tie_ceiling_of_published_levels() -> None:
    # Score 0 in 36.4 %, 1 in 13.9 %, .5 in 6.9 % of 67,899 pairs, the rest over 18 levels: published .974.
    rest = np.full(18, (1 - 0.364 - 0.139 - 0.069) / 18)
    counts = np.round(67_899 * np.array([0.364, 0.139, 0.069, *rest])).astype(np.int64)
    assert tie_ceiling(np.repeat(np.arange(21) / 20, counts)) == pytest.approx(0.974, abs=0.001)


def test_blanks_around_an_id_are_no_part_of_it_in_any_format(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id1": [" a "], "id2": ["b"], "score": [0.5]}), tmp_path / "pairs.parquet")
    (tmp_path / "pairs.tsv").write_text(" a \tb\t0.5\n")
    assert_same(read_pairs(tmp_path / "pairs.parquet"), read_pairs(tmp_path / "pairs.tsv"))
