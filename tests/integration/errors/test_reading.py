"""Damaged data sets, pairs, embeddings and submissions, and commands that are misspelt."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidsim.data.embeddings import read_embeddings, write_embeddings

SHARD = "data/pairwise/data-00000.arrow"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("pretran", "'pretran' is not a vidsim command. Fix: did you mean `vidsim pretrain`?"),
        ("zzz", "'zzz' is not a vidsim command. Fix: `vidsim --help` lists the commands"),
        ("verify", "the following arguments are required: folder. Fix: `vidsim verify --help` explains them"),
        ("split data/pairs.tsv --ou x", "--ou: no such option. Fix: did you mean --out?"),
        ("embed runs/pre data/test_b --out x --batch_size 0", "--batch_size: 0 is below 1"),
        ("verify nowhere", "nowhere: no such folder. Fix: name a folder that `vidsim convert` wrote"),
        ("inspect empty", "empty: holds no data set: no manifest.json in it or below. Fix: name a folder that"),
        ("embed runs/pre nowhere --out x", "nowhere: no such folder. Fix: name a folder that `vidsim convert` wrote"),
        ("embed runs/pre a_file --out x", "a_file: is a file, not a data set folder. Fix: name a folder"),
        ("embed runs/pre data --out x", "data: holds no manifest.json, so it is not a data set. Fix: name one of"),
        ("embed runs/pre data/test_b data/test_b --out x", "data/test_b: is named twice. Fix: name each data set once"),
        ("split nowhere.tsv --out x", "nowhere.tsv: no such file. Fix: name a file of pairs: id1, id2, score"),
        ("split a_file --out x", "a_file: the suffix '' is not known. Fix: use .tsv, .csv or .parquet"),
        ("split data/pairs.tsv --out a_file", "a_file/train.tsv: cannot be written (File exists). Fix: choose another"),
        ("split data/pairs.tsv --out x --num_folds 1", "--num_folds: 1 is below 2"),
        (
            "split data/pairs.tsv --out x --num_folds 400",
            "data/pairs.tsv: no pair of 40 is left for train. Fix: give more",
        ),
        ("split data/pairs.tsv --out x --fractions .9 .9 .1", "--fractions: 0.9 0.9 0.1 are not three shares above 0"),
    ],
)
def test_a_wrong_command_line_is_one_line(place: Any, words: str, message: str) -> None:
    assert place.fails(*words.split()).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "pairs.tsv: holds no pairs. Fix: write id1, id2 and a score on each line"),
        ("id1\tid2\tscore\n", "pairs.tsv: holds no pairs. Fix: write id1, id2 and a score on each line"),
        ("a\tb\t0.5\nc\td\n", "pairs.tsv, line 2: 2 fields, 3 expected. Fix: separate them by tabs"),
        ("a\tb\t0.5\nc\td\t1.5\n", "pairs.tsv, line 2, field 'score': 1.5 is not within 0 to 1. Fix: scale the scores"),
        ("a\tb\t0.5\nc\td\tnan\n", "pairs.tsv, line 2, field 'score': nan is not finite. Fix: mend or remove the line"),
        ("a\tb\t0.5\nc\td\thigh\n", "pairs.tsv, line 2, field 'score': 'high' is no number. Fix: mend or remove"),
        ("a\tb\t0.5\n\tb\t0.3\n", "pairs.tsv, line 2, field 'id1': is empty. Fix: mend or remove the line"),
        ("id1\tid2\tgrade\na\tb\t0.2\n", "pairs.tsv, line 1, field 'score': 'grade' is no number, and the line is no"),
        ("\xff", "pairs.tsv: is not UTF-8 text (byte 0)"),
    ],
)
@pytest.mark.parametrize("words", ["split pairs.tsv --out x", "score emb/pairwise pairs.tsv"])
def test_a_bad_pair_is_named(place: Any, words: str, text: str, message: str) -> None:
    (place / "pairs.tsv").write_text(text, encoding="latin-1")
    assert place.fails(*words.split()).startswith(message)


def damage(path: Path, fault: str) -> None:
    content = path.read_bytes()
    match fault:
        case "missing":
            path.unlink()
        case "truncated":
            path.write_bytes(content[:-10])
        case "flipped":
            path.write_bytes(content[:3000] + bytes([content[3000] ^ 1]) + content[3001:])


@pytest.mark.parametrize(
    ("file", "fault", "message"),
    [
        (SHARD, "missing", f"{SHARD}: the manifest lists this shard, but there is no such file. Fix: copy or convert"),
        (SHARD, "truncated", f"{SHARD}: is truncated: "),
        ("data/pairwise/manifest.json", "truncated", "data/pairwise/manifest.json: is not valid JSON ("),
        ("data/pairwise/manifest.json", "missing", "data/pairwise: holds no manifest.json, so it is not a data set"),
    ],
)
@pytest.mark.parametrize("words", ["inspect data/pairwise", "embed runs/pre data/pairwise --out x", "verify data"])
def test_a_damaged_data_set_is_named(place: Any, words: str, file: str, fault: str, message: str) -> None:
    damage(place / file, fault)
    if fault == "missing" and "manifest" in file and not words.startswith("embed"):
        message = "data/pairs.tsv: 78 of 78 ids" if words == "verify data" else "data/pairwise: holds no data set"
    assert place.fails(*words.split()).startswith(message)


def test_verification_lists_every_problem(place: Any) -> None:
    damage(place / SHARD, "flipped")
    damage(place / "data/test_a/data-00000.arrow", "truncated")
    code, said, err = place.run("verify", "data")
    assert code == 2
    problems = [line for line in said.splitlines() if line.startswith("PROBLEM ")]
    assert problems[0].startswith(f"PROBLEM {SHARD}: the content differs from when it was written: sha256 ")
    assert problems[-1].startswith("PROBLEM data/test_a/data-00000.arrow: is truncated: ")
    assert err.startswith(f"error: {SHARD}: the content differs from when it was written: ")
    assert f"(the first of {len(problems)} problems, which stand above)" in err


def vectors_of(place: Any, name: str) -> tuple[list[str], np.ndarray]:
    embeddings = read_embeddings(place / f"emb/{name}")
    return embeddings.ids, embeddings.vectors.copy()


def write_parquet(path: Path, ids: list[str], vectors: np.ndarray) -> None:
    """As another program would."""
    cells = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    pq.write_table(pa.table({"id": ids, "embedding": cells}), path)


def test_constant_predictions_are_named(place: Any) -> None:
    ids, vectors = vectors_of(place, "pairwise")
    write_embeddings(place / "emb/constant", ids, np.ones_like(vectors))
    error = place.fails("score", "emb/constant", "data/pairs.tsv")
    assert error == (
        "emb/constant: constant predictions: all 40 cosines are 1.000000. "
        "Fix: check the training: every video seems to get one embedding"
    )


def test_constant_labels_and_too_few_pairs_are_named(place: Any) -> None:
    lines = (place / "data/pairs.tsv").read_text().splitlines()[1:]
    (place / "p.tsv").write_text("".join(line.rpartition("\t")[0] + "\t0.5\n" for line in lines))
    assert (
        place.fails("score", "emb/pairwise", "p.tsv") == "p.tsv, field 'score': constant labels: all 40 scores are 0.5"
    )
    (place / "p.tsv").write_text(lines[0] + "\n")
    assert place.fails("score", "emb/pairwise", "p.tsv") == "p.tsv: 1 pairs, but a correlation needs at least 3"


@pytest.mark.parametrize("fault", ["nan", "zero", "twice", "junk", "columns"])
def test_bad_embeddings_are_named(place: Any, fault: str) -> None:
    ids, vectors = vectors_of(place, "pairwise")
    path = place / "bad.parquet"
    match fault:
        case "nan":
            vectors[5, 2] = np.nan
            message = f"bad.parquet, field 'embedding': 1 embeddings hold NaN or infinity: {ids[5]}"
        case "zero":
            vectors[5] = 0
            message = f"bad.parquet: 1 embeddings are zero vectors, which have no cosine: {ids[5]}"
        case "twice":
            ids = [ids[0], ids[0], *ids[2:]]
            message = f"bad.parquet, field 'id': 1 ids occur more than once: {ids[0]}. Fix: keep one row for each id"
        case "junk":
            message = "bad.parquet: is not a readable Parquet file ("
        case _:
            message = "bad.parquet: has no column 'id' (columns: video)"
    write_parquet(path, ids, vectors)
    if fault == "junk":
        path.write_text("junk")
    if fault == "columns":
        pq.write_table(pa.table({"video": ids}), path)
    assert place.fails("score", "bad.parquet", "data/pairs.tsv").startswith(message)
    if fault != "zero":
        assert place.fails("ensemble", "emb/pairwise", "bad.parquet", "--out", "x").startswith(message)


def test_members_that_do_not_fit_are_named(place: Any) -> None:
    ids, vectors = vectors_of(place, "test_b")
    write_parquet(place / "less.parquet", ids[1:], vectors[1:])
    write_parquet(place / "wide.parquet", ids, np.hstack([vectors, vectors]))
    other = place.fails("ensemble", "emb/test_b", "emb/test_a", "--out", "x")
    assert other.startswith(f"emb/test_b: has {len(ids)} ids, but emb/test_a lacks {len(ids)} of them ({ids[0]}, ")
    less = place.fails("ensemble", "emb/test_b", "less.parquet", "--out", "x")
    assert less.startswith(f"emb/test_b: has {len(ids)} ids, but less.parquet lacks 1 of them ({ids[0]}). Fix: embed")
    place.succeeds("ensemble", "emb/test_b", "wide.parquet", "--out", "fused", "--dim", "4")
    wide = place.fails("ensemble", "wide.parquet", "wide.parquet", "--apply", "fused", "--out", "x")
    assert wide.startswith("wide.parquet: has width 16, but member 1 of the projection (test_b) has 8. Fix: give the")
    assert place.fails("ensemble", "emb/test_b", "nowhere", "--out", "x").startswith(
        "nowhere: no such embeddings folder"
    )


@pytest.mark.parametrize(
    "words",
    [
        "score emb/test_b data/pairs.tsv",
        "submit emb/test_b --ids data/test_b --out x.zip",
        "search emb/test_b --query 1",
    ],
)
def test_an_interrupted_embedding_is_named_and_goes_on(place: Any, words: str) -> None:
    (place / "emb/test_b/embeddings.json").unlink()
    error = place.fails(*words.split())
    assert error == (
        "emb/test_b: is not complete: 1 shards but no embeddings.json. "
        "Fix: run the command that makes it again: it goes on where it stopped"
    )
    assert "40 of 40 are there already" in place.succeeds("embed", "runs/pre", "data/test_b", "--out", "emb/test_b")


def test_embeddings_of_another_model_are_not_mixed_in(place: Any) -> None:
    (place / "emb/test_b/embeddings.json").unlink()
    words = ("embed", "runs/pre/checkpoints/step_000002", "data/test_b", "--out", "emb/test_b")
    error = place.fails(*words)
    assert error.startswith("emb/test_b/part-00000.parquet: holds the embeddings of another run (not the same: model)")
    assert error.endswith("Fix: choose another --out, or start afresh with --overwrite")
    place.succeeds(*words, "--overwrite")


def test_a_submission_without_an_asked_id_is_not_written(place: Any) -> None:
    error = place.fails("submit", "emb/test_b", "--ids", "data/test_a", "--out", "result.zip")
    assert error.startswith("emb/test_b: has no embedding for 37 of the 37 ids asked for: ")
    assert error.endswith("Fix: embed the data set that holds them")


def test_a_bad_submission_is_named(place: Any) -> None:
    place.succeeds("submit", "emb/test_b", "--ids", "data/test_b", "--out", "r.zip")
    check = ("submit", "--check", "r.zip", "--ids", "data/test_b")
    with zipfile.ZipFile(place / "r.zip") as archive:
        content = json.loads(archive.read("result.json"))
    ids = list(content)
    content["stranger"] = content.pop(ids[0])
    content[ids[1]] = [0.0] * 8
    with zipfile.ZipFile(place / "r.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("result.json", json.dumps(content))
    error = place.fails(*check)
    assert error == (
        f"r.zip: 1 ids with a vector of norm 0 or infinity: {ids[1]}; 1 ids missing: {ids[0]}; "
        "1 ids not asked for: stranger. Fix: write it with `vidsim submit`"
    )
    damage(place / "r.zip", "truncated")
    assert place.fails(*check).startswith("r.zip: is not a whole zip file (")
    assert place.fails("submit", "--check", "no.zip", "--ids", "data/test_b") == "no.zip: no such file"
    (place / "ids.txt").write_text("1\n\n2\n")
    assert place.fails(*check[:4], "ids.txt") == "ids.txt, line 2: '' is not one id. Fix: one id on each line"


def test_ids_that_are_not_in_the_data_set_are_named_with_their_file(place: Any) -> None:
    (place / "ids.txt").write_text("12\n13\n")
    error = place.fails("embed", "runs/pre", "data/test_b", "--out", "x", "--ids", "ids.txt")
    assert (
        error == "ids.txt: 2 of 2 videos are not in data/test_b, first 12, 13. Fix: name the data set that holds them"
    )


def test_data_sets_of_two_widths_are_not_joined(place: Any) -> None:
    small = ("--num_videos", "20", "--num_pairs", "20", "--num_files", "1", "--frame_dim", "4", "--seed", "1")
    place.succeeds("generate", "--out", "wide", *small)
    place.succeeds("convert", "aiac", "wide", "--out", "data4", "--frame_dim", "4", "--num_processes", "1")
    error = place.fails("embed", "runs/pre", "data/test_b", "data4/test_b", "--out", "x")
    assert error == (
        "data4/test_b, field 'streams': has frames of width 4, but data/test_b has frames of width 8. "
        "Fix: convert both with the same features"
    )
    error = place.fails("embed", "runs/pre", "data4/test_b", "--out", "x")
    assert error.startswith(
        "runs/pre/checkpoints/step_000004, field 'frames': the data set has vectors of width 4, "
        "the checkpoint reads vectors of width 8. Fix: use features of the extractor"
    )
