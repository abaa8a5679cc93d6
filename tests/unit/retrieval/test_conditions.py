from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidsim.common.errors import UserError
from vidsim.retrieval.conditions import parse_conditions, read_metadata

TABLE = pa.table({"n": [1, 2, 3, None], "text": ["a", "b=c", "a", "d"], "ok": [True, False, True, True]})


@pytest.mark.parametrize(
    ("conditions", "rows"),
    [
        (["n=2"], [1]),
        (["n!=2"], [0, 2]),
        (["n < 3"], [0, 1]),
        (["n<=3", "n>1"], [1, 2]),
        (["n>=2", "text=a"], [2]),
        (["text=b=c"], [1]),
        (["ok=true"], [0, 2, 3]),
    ],
)
def test_conditions_select(conditions: list[str], rows: list[int]) -> None:
    condition = parse_conditions(conditions, TABLE.schema)
    numbered = TABLE.append_column("row", pa.array(range(4)))
    assert numbered.filter(condition)["row"].to_pylist() == rows


def test_no_condition_is_none() -> None:
    assert parse_conditions([], TABLE.schema) is None


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("n", "'n' is not a condition. Fix: write COLUMN=VALUE"),
        ("=3", "'=3' is not a condition"),
        ("m=3", "there is no metadata column 'm'. Fix: the columns are: n, text, ok"),
        ("n=x", "'x' is not a value of column 'n' (int64)"),
    ],
)
def test_faults_of_conditions_are_named(condition: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_conditions([condition], TABLE.schema)
    assert message in str(caught.value)
    assert str(caught.value).startswith("--where: ")


def test_metadata_comes_in_the_order_asked_for(tmp_path: Path) -> None:
    (tmp_path / "meta.csv").write_text("id,n,text\n007,1,x\n7,2,\nb,3,z\n")
    (tmp_path / "meta.tsv").write_text("id\tn\ttext\n007\t1\tx\n7\t2\t\nb\t3\tz\n")
    for name in ("meta.csv", "meta.tsv"):
        table = read_metadata(tmp_path / name, ["b", "007"])
        assert table.to_pydict() == {"n": [3, 1], "text": ["z", "x"]}
    pq.write_table(pa.table({"id": [7, 8], "n": [0.5, 1.5]}), tmp_path / "meta.parquet")
    assert read_metadata(tmp_path / "meta.parquet", ["8"]).to_pydict() == {"n": [1.5]}


def test_faults_of_metadata_are_named(tmp_path: Path) -> None:
    path = tmp_path / "meta.csv"
    with pytest.raises(UserError, match=r"meta\.csv: cannot be read"):
        read_metadata(path, ["a"])
    path.write_text("name,n\na,1\n")
    with pytest.raises(UserError, match="has the columns name, n, not one called 'id'"):
        read_metadata(path, ["a"])
    path.write_text("id,n\na,1\na,2\n")
    with pytest.raises(UserError, match="1 ids occur more than once: a"):
        read_metadata(path, ["a"])
    path.write_text("id,n\na,1\nb,2\n")
    with pytest.raises(UserError, match="has no row for 2 of 3 ids: c, d"):
        read_metadata(path, ["c", "a", "d"])
    (tmp_path / "meta.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"meta\.parquet: cannot be read"):
        read_metadata(tmp_path / "meta.parquet", ["a"])
