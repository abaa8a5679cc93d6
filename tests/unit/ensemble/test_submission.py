from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import cosine
from scipy.stats import spearmanr

from vidsim.common.errors import UserError
from vidsim.data.embeddings import Embeddings, write_embeddings
from vidsim.data.pairs import Pairs, write_pairs
from vidsim.ensemble.submission import (
    main,
    read_submission,
    rounding_effect,
    score_submission,
    write_submission,
)

IDS = ["7", "12", 'é"\n', "3"]


def embeddings(ids: list[str] = IDS, dim: int = 8, seed: int = 0) -> Embeddings:
    vectors = np.random.default_rng(seed).standard_normal((len(ids), dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Embeddings(ids, vectors, name="emb/f")


def pack(path: Path, content: object, name: str = "result.json") -> Path:
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, text)
    return path


def test_round_trip(tmp_path: Path) -> None:
    emb, asked = embeddings(), ["3", IDS[2], "12"]
    written = write_submission(tmp_path / "out" / "result.zip", emb, asked)
    read = read_submission(tmp_path / "out" / "result.zip", asked)
    assert read.ids == asked
    np.testing.assert_array_equal(read.vectors, written.vectors)
    np.testing.assert_allclose(read.vectors, emb.vectors[[3, 2, 1]], atol=5.1e-7)
    assert rounding_effect(read, emb) < 5e-6
    with zipfile.ZipFile(tmp_path / "out" / "result.zip") as archive:
        assert archive.namelist() == ["result.json"]
        assert archive.getinfo("result.json").compress_type == zipfile.ZIP_DEFLATED
        plain = json.loads(archive.read("result.json"))
    assert list(plain) == asked
    assert plain["12"] == [round(value, 6) for value in emb.vectors[1].tolist()]


def test_same_input_same_bytes_and_more_decimals(tmp_path: Path) -> None:
    emb = embeddings()
    for name, decimals in (("a", 6), ("b", 6), ("c", 9)):
        write_submission(tmp_path / name, emb, IDS, decimals)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert rounding_effect(read_submission(tmp_path / "c", IDS), emb) < 1e-8


def test_nothing_is_written_where_the_embeddings_do_not_do(tmp_path: Path) -> None:
    out = tmp_path / "result.zip"
    with pytest.raises(UserError, match="no embedding for 1 of the 2 ids asked for: 99"):
        write_submission(out, embeddings(), ["7", "99"])
    with pytest.raises(UserError, match=r"has width 257, at most 256 .*Fix: vidsim ensemble emb/f --dim 256"):
        write_submission(out, embeddings(dim=257), IDS)
    tiny = Embeddings(["a", "b"], np.array([[1, 0], [1e-9, 0]], np.float32), name="emb/t")
    with pytest.raises(UserError, match="1 ids with a vector of norm 0 or infinity: b"):
        write_submission(out, tiny, ["a", "b"])
    with pytest.raises(UserError, match="must be 3 to 17"):
        write_submission(out, embeddings(), IDS, 2)
    assert not list(tmp_path.iterdir())


GOOD = {"a": [1.0, 0], "b": [0.6, 0.8]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": [1, 0]}, "1 ids missing: b"),
        ({**GOOD, "c": [1, 0], "d": [1, 0]}, "2 ids not asked for: c, d"),
        ({"a": [1, 0], "b": [1, 0, 0]}, "1 ids with another width than the first vector's 2: b"),
        ({**GOOD, "b": [0.5] * 257}, "1 ids with more than 256 numbers: b"),
        ({**GOOD, "b": [0, 0.0]}, "1 ids with a vector of norm 0 or infinity: b"),
        ({**GOOD, "b": [1e200, 1e200]}, "norm 0 or infinity: b"),
        ({**GOOD, "b": ["1", 0]}, "1 ids without a list of numbers: b"),
        ({**GOOD, "b": [True, 0]}, "without a list of numbers: b"),
        ({**GOOD, "b": [[1, 0]]}, "without a list of numbers: b"),
        ({**GOOD, "b": None}, "without a list of numbers: b"),
        ({**GOOD, "b": []}, "without a list of numbers: b"),
        ({**GOOD, "b": {"x": 1}}, "without a list of numbers: b"),
        ('{"a": [1, 0], "b": [NaN, 1]}', "record b: result.json is not strict JSON .NaN is no JSON number"),
        ('{"a": [1, 0], "b": [-Infinity, 1]}', "-Infinity is no JSON number"),
        ('{"a": [1, 0], "b": [1e999, 1]}', "1 ids with a number that is not finite: b"),
        ('{"a": [1, 0], "b": [1' + "0" * 400 + ", 1]}", "1 ids with a number that is not finite: b"),
        ('{"a": [1, 0], "b": [1' + "0" * 5000 + ", 1]}", "record b: result.json is not strict JSON"),
        ('{"a": [1, 0], "b": [0, 1], "a": [1, 0]}', "1 ids more than once: a"),
        ('{"a": [1, 0], "b": [0, 1]} {}', "something follows the object"),
        ('{"a": [1, 0], "b": [0, 1],}', "is not strict JSON"),
        ('{"a": [1, 0] "b": [0, 1]}', "',' expected at character 13"),
        ('{"a": [1, 0], "b": [0, 1]', "is not strict JSON"),
        ('{"a": [1, 0], 3: [0, 1]}', "a key is not a string"),
        ('{"a" [1, 0]}', "':' expected"),
        ("[1, 2]", "'{' expected"),
        ("", "'{' expected"),
        ("{}", "2 ids missing: a, b"),
        ('{"a": ' + "[" * 100_000, "record a: result.json is not strict JSON"),
        (b'{"\xff": [1]}', "is not UTF-8 text"),
        (b'\xef\xbb\xbf{"a": [1]}', "'{' expected"),
    ],
)
def test_planted_faults_are_named(tmp_path: Path, content: object, message: str) -> None:
    path = pack(tmp_path / "result.zip", content)
    with pytest.raises(UserError, match=message) as caught:
        read_submission(path, ["a", "b"])
    assert str(path) in str(caught.value)


def test_all_faults_are_named_together(tmp_path: Path) -> None:
    content = {"a": [1, 0], "x": [1, 0], "b": [0, 0], "c": [1]}
    with pytest.raises(UserError) as caught:
        read_submission(pack(tmp_path / "r.zip", content), ["a", "b", "c", "d"])
    for part in ("missing: d", "not asked for: x", "norm 0 or infinity: b", "first vector's 2: c"):
        assert part in str(caught.value)


def test_good_ones_pass_and_norms_are_warned_of(tmp_path: Path) -> None:
    submission = read_submission(pack(tmp_path / "r.zip", GOOD), ["b", "a"])
    assert submission.describe().startswith("OK ")
    assert "2 ids, each once, 2 finite numbers each" in submission.describe()
    assert "warning" not in submission.describe()
    submission = read_submission(pack(tmp_path / "r.zip", {**GOOD, "b": [3, 4]}), ["b", "a"])
    assert "warning: 1 vectors do not have norm 1 (first: b, norm 5)" in submission.describe()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("submit/result.json", "at its root and nothing else, holds 1 entries: 'submit/result.json'"),
        ("result_0.json", "holds 1 entries"),
        ("../result.json", "an entry outside of the zip"),
        ("/result.json", "an entry outside of the zip"),
        ("..\\result.json", "an entry outside of the zip"),
    ],
)
def test_wrong_entry_names(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("\\", "\\\\")):
        read_submission(pack(tmp_path / "r.zip", GOOD, name), ["a", "b"])


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_several_entries(tmp_path: Path) -> None:
    for extra in ("result.json", "notes.txt"):
        path = pack(tmp_path / "r.zip", GOOD)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(extra, "{}")
        with pytest.raises(UserError, match="nothing else, holds 2 entries"):
            read_submission(path, ["a", "b"])


def test_zip_bombs_are_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "r.zip", b" " * 50_000_000)
    assert path.stat().st_size < 100_000
    with pytest.raises(UserError, match=r"larger than .* bytes, which no submission of these ids is"):
        read_submission(path, ["a", "b"])


def test_declared_size_is_not_trusted(tmp_path: Path) -> None:
    path = pack(tmp_path / "r.zip", b" " * 50_000_000)
    content = bytearray(path.read_bytes())
    size = (50_000_000).to_bytes(4, "little")
    assert content.count(size) == 2  # local header and central directory
    path.write_bytes(content.replace(size, (100).to_bytes(4, "little")))
    with pytest.raises(UserError, match="is not a whole zip file"):
        read_submission(path, ["a", "b"])


def test_damaged_zips(tmp_path: Path) -> None:
    path = write_submission(tmp_path / "r.zip", embeddings(dim=64), IDS).name
    content = Path(path).read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 4
    encrypted = bytearray(content)
    encrypted[content.index(b"PK\x01\x02") + 8] |= 1
    for number, bad in enumerate((b"", b"PK", content[:-30], content[: len(content) // 2], bytes(flipped))):
        (tmp_path / f"{number}.zip").write_bytes(bad)
        with pytest.raises(UserError, match="is not"):
            read_submission(tmp_path / f"{number}.zip", IDS)
    (tmp_path / "e.zip").write_bytes(encrypted)
    with pytest.raises(UserError, match="is encrypted"):
        read_submission(tmp_path / "e.zip", IDS)
    with pytest.raises(UserError, match="no such file"):
        read_submission(tmp_path / "missing.zip", IDS)


def test_other_packing_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "r.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("result.json", json.dumps(GOOD))
    with pytest.raises(UserError, match="not packed with deflate"):
        read_submission(tmp_path / "r.zip", ["a", "b"])


def as_the_organisers_do(path: Path, rows: list[tuple[str, str, float]]) -> float:
    """Open result.json, cosine pair by pair, Spearman against the raw label."""
    with zipfile.ZipFile(path) as archive, archive.open("result.json") as file:
        result = json.load(file)
    predictions = [1 - cosine(result[first], result[second]) for first, second, _ in rows]
    return float(spearmanr(predictions, [label for _, _, label in rows]).statistic)


def test_score_is_that_of_the_organisers_evaluator(tmp_path: Path) -> None:
    ids = [f"v{i}" for i in range(50)]
    write_submission(tmp_path / "r.zip", embeddings(ids, 16), ids, decimals=3)
    generator = np.random.default_rng(2)
    rows = [
        (ids[first], ids[second], round(generator.integers(0, 21) * 0.05, 2))
        for first, second in generator.integers(0, 50, (150, 2)).tolist()
        if first != second
    ]
    pairs = Pairs([row[0] for row in rows], [row[1] for row in rows], np.array([row[2] for row in rows]))
    found = score_submission(read_submission(tmp_path / "r.zip", ids), pairs)
    assert math.isclose(found, as_the_organisers_do(tmp_path / "r.zip", rows), abs_tol=1e-9)


def test_score_faults(tmp_path: Path) -> None:
    submission = read_submission(pack(tmp_path / "r.zip", {"a": [1, 0], "b": [2, 0], "c": [3, 0]}), ["a", "b", "c"])
    score = np.array([0.1, 0.2, 0.3])
    with pytest.raises(UserError, match="constant predictions"):
        score_submission(submission, Pairs(["a", "a", "b"], ["b", "c", "c"], score))
    with pytest.raises(UserError, match="2 videos of the pairs are not in it: x, y"):
        score_submission(submission, Pairs(["a", "x", "y"], ["b", "c", "x"], score))


def run(line: str) -> int:
    return main(line.split())


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    ids = [f"v{i}" for i in range(30)]
    emb = embeddings(ids)
    write_embeddings("emb", emb.ids, emb.vectors)
    Path("ids.txt").write_text("\n".join(ids))
    score = np.random.default_rng(0).random(29)
    write_pairs("pairs.tsv", Pairs(ids[:-1], ids[1:], score))
    assert run("emb --ids ids.txt --out result.zip") == 0
    out = capsys.readouterr().out
    assert "OK result.zip: 30 ids, each once, 8 finite numbers each" in out
    assert "rounding changes a cosine by at most" in out
    assert run("--check result.zip --ids ids.txt --pairs pairs.tsv emb") == 0
    out = capsys.readouterr().out
    assert "Spearman" in out
    assert "warning" not in out
    write_embeddings("other", emb.ids, -emb.vectors[::-1])
    assert run("--check result.zip --ids ids.txt other") == 0
    assert "more than rounding" in capsys.readouterr().out
    write_pairs("others.tsv", Pairs(["v1", "x", "v2"], ["v2", "v1", "y"], np.array([0.1, 0.2, 0.3])))
    write_pairs("flat.tsv", Pairs(ids[:3], ids[1:4], np.full(3, 0.5)))
    faults = {
        "others": r"others\.tsv: 2 of its 4 videos are not among the ids of ids\.txt: x, y",
        "flat": "constant labels",
        "none": r"none\.tsv: no such file",
    }
    for name, message in faults.items():
        with pytest.raises(UserError, match=message):
            run(f"emb --ids ids.txt --out new.zip --pairs {name}.tsv")
        assert not Path("new.zip").exists()
    assert run("emb --ids ids.txt --out new.zip --pairs pairs.tsv") == 0
    with pytest.raises(UserError, match="--out needs the embeddings to write"):
        run("--ids ids.txt --out result.zip")
    with pytest.raises(UserError, match="one of the arguments --out --check is required"):
        run("emb --ids ids.txt")


def test_a_vector_that_rounds_to_zero_is_no_matter_of_the_command(tmp_path: Path) -> None:
    emb = embeddings(dim=4)
    vectors = emb.vectors.copy()
    vectors[1] = 1e-9
    tiny = Embeddings(emb.ids, vectors, name="emb/tiny")
    with pytest.raises(
        UserError, match=r"1 ids with a vector of norm 0 .*Fix: raise --decimals, or embed these"
    ) as found:
        write_submission(tmp_path / "r.zip", tiny, IDS)
    assert "write it with" not in str(found.value)
    assert not (tmp_path / "r.zip").exists()
