from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from vidsim.common.errors import UserError
from vidsim.data.embeddings import Embeddings
from vidsim.ensemble.projection import PROJECTION_FILE, TENSOR_FILE, fit_projection, load_projection


def make(name: str, dim: int, seed: int, ids: list[str] | None = None) -> Embeddings:
    ids = ids or [f"v{i}" for i in range(20)]
    vectors = np.random.default_rng(seed).standard_normal((len(ids), dim)).astype(np.float32)
    return Embeddings(ids, vectors, {"model": f"model-{name}"}, f"runs/emb/{name}")


def test_saved_projection_gives_the_same_embeddings(tmp_path: Path) -> None:
    pair = [make("a", 6, 0), make("b", 4, 1)]
    projection = fit_projection(pair, [0.7, 0.3], 5)
    ids, vectors = projection.apply(pair)
    projection.save(tmp_path)
    loaded = load_projection(tmp_path)
    again_ids, again = loaded.apply(pair)
    assert again_ids == ids
    np.testing.assert_array_equal(again, vectors)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert loaded.members == projection.members
    assert [member.name for member in loaded.members] == ["a", "b"]
    assert (loaded.explained, loaded.num_fitted, loaded.rank) == (projection.explained, 20, 5)


def test_explained_share_is_that_of_the_singular_values() -> None:
    member = make("a", 6, 0)
    unit = member.vectors / np.linalg.norm(member.vectors, axis=1, keepdims=True)
    singular = np.linalg.svd(unit.astype(np.float64), compute_uv=False)
    expected = (singular[:2] ** 2).sum() / (singular**2).sum()
    assert fit_projection([member], [1.0], 2).explained == pytest.approx(expected, abs=1e-7)


def test_rows_are_aligned_by_id() -> None:
    first, second = make("a", 6, 0), make("b", 4, 1)
    order = np.random.default_rng(2).permutation(20)
    shuffled = Embeddings([second.ids[i] for i in order], second.vectors[order], second.metadata, second.name)
    straight = fit_projection([first, second], [0.5, 0.5], 4).apply([first, second])[1]
    mixed = fit_projection([first, shuffled], [0.5, 0.5], 4).apply([first, shuffled])[1]
    np.testing.assert_array_equal(mixed, straight)


def test_applied_to_new_videos_nothing_is_fitted() -> None:
    pair = [make("a", 6, 0), make("b", 4, 1)]
    projection = fit_projection(pair, [0.5, 0.5], 4)
    new = [make("a", 6, 7, ["n1", "n2", "n3"]), make("b", 4, 8, ["n1", "n2", "n3"])]
    all_three = projection.apply(new)[1]
    alone = projection.apply([Embeddings(["n2"], each.vectors[1:2], each.metadata, each.name) for each in new])[1]
    np.testing.assert_allclose(alone[0], all_three[1], atol=1e-7)


def test_members_in_another_order_or_number_are_refused() -> None:
    pair = [make("a", 6, 0), make("b", 6, 1)]
    projection = fit_projection(pair, [0.5, 0.5], 4)
    with pytest.raises(UserError, match=r"emb/b: was made by another model than member 1 .*\(a\).*Fix: .* a, b"):
        projection.apply(pair[::-1])
    with pytest.raises(UserError, match="fuses 2 members, 1 are given"):
        projection.apply(pair[:1])
    with pytest.raises(UserError, match=r"has width 5, but member 2 of the projection .* has 6"):
        projection.apply([pair[0], make("b", 5, 1)])


def test_other_ids_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"emb/b lacks 20 of them \(v0, v1, v2, v3, v4 and 15 more\).*has 1 others \(z\)"
    ):
        fit_projection([make("a", 6, 0), make("b", 4, 1, ["z"])], [0.5, 0.5], 4)


def test_few_rows_span_few_dimensions() -> None:
    assert fit_projection([make("a", 6, 0, ["x", "y", "z"])], [1.0], 5).rank == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 9}, "is not a projection"),
        ({"members": []}, "is not a projection"),
        ({"members": [{"name": "a", "dim": 6, "weight": -1, "model": None}]}, "is not a projection"),
        (
            {"members": [{"name": "a", "dim": 9, "weight": 1, "model": None}]},
            r"must be finite float32 \[9, 4\]",
        ),
        ({"dim": 5}, r"must be finite float32 \[6, 5\]"),
        ({"explained": "much"}, "is not a projection"),
    ],
)
def test_malformed_projection_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    fit_projection([make("a", 6, 0)], [1.0], 4).save(tmp_path)
    content = json.loads((tmp_path / PROJECTION_FILE).read_text())
    (tmp_path / PROJECTION_FILE).write_text(json.dumps({**content, **change}))
    with pytest.raises(UserError, match=message):
        load_projection(tmp_path)


def test_exchanged_tensor_is_refused(tmp_path: Path) -> None:
    fit_projection([make("a", 6, 0)], [1.0], 4).save(tmp_path)
    save_file({"components": np.zeros((6, 4), np.float32)}, tmp_path / TENSOR_FILE)
    with pytest.raises(UserError, match="not the file that was saved"):
        load_projection(tmp_path)
    (tmp_path / TENSOR_FILE).unlink()
    with pytest.raises(UserError, match="is not a projection"):
        load_projection(tmp_path)
    with pytest.raises(UserError, match=r"holds no projection\.json"):
        load_projection(tmp_path / "nothing")
