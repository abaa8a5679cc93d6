"""Computed grades of emoji pairs: how far keywords and CLDR groups of two items agree."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vidsim.data.pairs import Pairs

Float64 = npt.NDArray[np.float64]
LANGUAGES = ("en", "zh")
_NUM_LEVELS = 20
_SHARE_OF_UNRELATED = 0.3


def keyword_overlap(items: Sequence[Mapping[str, Any]], language: str, *, is_weighted: bool) -> Float64:
    """Jaccard index of the keywords of every two items, float64 [N, N].

    Args:
        items: Each with `tags_<language>`.
        language: Whose keywords.
        is_weighted: A keyword weighs ln(items / items with it); else all weigh the same.
    """
    counts = Counter(keyword for item in items for keyword in set(item[f"tags_{language}"]))
    columns = {keyword: column for column, keyword in enumerate(counts)}
    has = np.zeros((len(items), len(columns)), dtype=np.float32)
    for row, item in enumerate(items):
        has[row, [columns[keyword] for keyword in item[f"tags_{language}"]]] = 1.0
    weights = np.array([math.log(len(items) / count) if is_weighted else 1.0 for count in counts.values()])
    shared = ((has * weights.astype(np.float32)) @ has.T).astype(np.float64)
    total = has @ weights
    union = total[:, None] + total[None, :] - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))


def computed_grades(items: Sequence[Mapping[str, Any]]) -> Float64:
    """Grade of every two items, float64 [N, N], within 0 and 1.

    0.8 x the square root of the weighted keyword overlap (mean of both languages) + 0.12 for the same CLDR subgroup
    + 0.08 for the same group. No human judgement is in it.
    """
    overlap = np.mean([keyword_overlap(items, language, is_weighted=True) for language in LANGUAGES], axis=0)
    grades = 0.8 * np.sqrt(overlap)
    for key, share in (("subgroup_en", 0.12), ("group_en", 0.08)):
        names = np.array([item[key] for item in items])
        grades += share * (names[:, None] == names[None, :])
    return np.asarray(np.clip(grades, 0.0, 1.0))


def sample_computed_pairs(
    items: Sequence[Mapping[str, Any]], left_out: Collection[str], number: int, seed: int = 0
) -> Pairs:
    """Pairs of items with computed grades: a share of unrelated ones, the other grades as evenly as they occur.

    Args:
        items: All items; frequencies of keywords are counted over them.
        left_out: Ids that may stand in no pair: those of the human pairs.
        number: Pairs to draw.
        seed: Of the draw.
    """
    rng = np.random.default_rng(seed)
    grades = computed_grades(items)
    usable = np.array([item["id"] not in left_out for item in items])
    first, second = np.nonzero(np.triu(usable[:, None] & usable[None, :], k=1))
    values = grades[first, second]
    unrelated = rng.permutation(np.flatnonzero(values == 0))[: round(_SHARE_OF_UNRELATED * number)]
    level = np.ceil(values * _NUM_LEVELS).astype(np.int64)
    queues = [iter(rng.permutation(np.flatnonzero(level == step)).tolist()) for step in range(1, _NUM_LEVELS + 1)]
    # In rounds, one pair of each level: rare levels run out, the others share the rest.
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*queues))
    graded = list(itertools.islice((pair for pair in rounds if pair is not None), number - len(unrelated)))
    chosen = rng.permutation(np.concatenate([unrelated, np.array(graded, dtype=np.int64)]))
    ids = [item["id"] for item in items]
    return Pairs([ids[row] for row in first[chosen]], [ids[row] for row in second[chosen]], values[chosen])
