from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse

from vidsim.common.errors import UserError
from vidsim.data.cowatch_sessions import SessionColumns, estimated_rows, read_sessions


def read(path: Path, columns: SessionColumns | None = None) -> dict[str, list[object]]:
    tables = [table for table, _ in read_sessions(path, columns or SessionColumns())]
    return pa.concat_tables(tables).to_pydict()


def parquet(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table({"user": ["u", "u"], "video": ["a", "b"], "time": [1.0, 2.0], **columns}), path)
    return path


@pytest.mark.parametrize(
    "times",
    [
        pa.array([86_400, 86_401], pa.int64()),
        pa.array([86_400_000, 86_401_000], pa.timestamp("ms")),
        pa.array([86_400_000_000_001, 86_401_000_000_999], pa.timestamp("ns")),
        pa.array([86_400_000_000_001, 86_401_000_000_999], pa.timestamp("ns", "UTC")),
        pa.array([datetime(1970, 1, 2, tzinfo=UTC), datetime(1970, 1, 2, 0, 0, 1, tzinfo=UTC)]),
        pa.array(["1970-01-02 00:00:00", "1970-01-02 00:00:01"]),
        pa.array(["1970-01-02T00:00:00Z", "1970-01-02T00:00:01Z"]),
        pa.array(["86400", "86401.0"]),
    ],
)
def test_times_of_any_kind_become_seconds(tmp_path: Path, times: pa.Array) -> None:
    assert read(parquet(tmp_path / "w.parquet", time=times))["time"] == [86_400, 86_401]


def test_days_become_seconds(tmp_path: Path) -> None:
    path = parquet(tmp_path / "w.parquet", time=[date(1970, 1, 2), date(1970, 1, 3)])
    assert read(path)["time"] == [86_400, 172_800]


def test_ids_of_any_kind_become_text(tmp_path: Path) -> None:
    path = parquet(tmp_path / "w.parquet", user=[7, 8], video=pa.array(["a", "a"]).dictionary_encode())
    assert read(path) == {"key": ["7", "8"], "video": ["a", "a"], "time": [1, 2]}
    with pytest.raises(UserError, match="field 'user': ids must be text or whole numbers, not double"):
        read(parquet(tmp_path / "w.parquet", user=[1.0, 2.0]))


def test_a_session_is_part_of_the_key_and_ratings_are_a_threshold(tmp_path: Path) -> None:
    path = parquet(tmp_path / "w.parquet", visit=["x", "y"], stars=[5, 3])
    assert read(path, SessionColumns(session="visit"))["key"] == ["u\x1fx", "u\x1fy"]
    assert read(path, SessionColumns(rating="stars", min_rating=4))["video"] == ["a"]
    assert read(path, SessionColumns(rating="stars", min_rating=3))["video"] == ["a", "b"]
    blocks = list(read_sessions(path, SessionColumns(rating="stars", min_rating=4)))
    assert [rows for _, rows in blocks] == [2]  # read, before the threshold
    with pytest.raises(UserError, match="field 'stars': is missing or not finite"):
        read(parquet(tmp_path / "w.parquet", stars=[None, 3]), SessionColumns(rating="stars", min_rating=4))


def test_the_row_at_fault_is_named_in_any_block(tmp_path: Path) -> None:
    count = 2**18 + 10
    videos = ["v"] * count
    videos[-3] = ""
    table = pa.table({"user": ["u"] * count, "video": videos, "time": np.arange(count)})
    pq.write_table(table, tmp_path / "w.parquet")
    with pytest.raises(UserError, match=rf"record {count - 3}, field 'video': is empty"):
        read(tmp_path / "w.parquet")
    assert estimated_rows(tmp_path / "w.parquet") == count
    with pytest.raises(UserError, match="record 1, field 'video': is empty or holds control characters"):
        read(parquet(tmp_path / "w.parquet", video=["a", "b\tc"]))
    with pytest.raises(UserError, match="record 0, field 'user': is empty"):
        read(parquet(tmp_path / "w.parquet", user=[None, "u"]))


def test_tabs_and_quotes(tmp_path: Path) -> None:
    (tmp_path / "w.tsv").write_text('user\tvideo\ttime\tmore\n"u 1"\ta\t1\tx\n', encoding="utf-8")
    assert read(tmp_path / "w.tsv") == {"key": ["u 1"], "video": ["a"], "time": [1]}


def test_bad_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "uneven.npz", user=["u"], video=["a", "b"], time=[1.0, 2.0])
    (tmp_path / "no.npz").write_bytes(b"PK no")
    (tmp_path / "no.parquet").write_bytes(b"no")
    (tmp_path / "w.json").write_text("{}", encoding="utf-8")
    scipy.sparse.save_npz(tmp_path / "m.npz", scipy.sparse.csr_array(np.eye(2)))
    for name, message in (
        ("uneven.npz", "lists of one length"),
        ("no.npz", "not a readable npz"),
        ("no.parquet", "not a Parquet file"),
        ("w.json", "suffix '.json' is not known"),
        ("none.csv", "no such file"),
        ("m.npz", "no times"),
    ):
        with pytest.raises(UserError, match=message):
            read(tmp_path / name)
    with pytest.raises(UserError, match="has no sessions"):
        read(tmp_path / "m.npz", SessionColumns(time=None, session="s"))
