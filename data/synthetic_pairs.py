"""The pairs of a generated competition: which videos are compared, and the score of each pair.

The graph follows the published one (22,040 components over 63,613 videos and 67,899 pairs; the largest has
16,664 videos and about 43 thousand pairs, most others are single pairs); so do the shares of the scores.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vidsim.data.synthetic_world import Latents, World

# Shares of the levels 0, .05, ..., 1: those of 0, .5 and 1, mean .359, sd .379 and the ranks of .05, .1, .25,
# .75 and .95 are published; the rest is filled in.
LEVEL_SHARES = (
    *(0.364, 0.055, 0.035, 0.025, 0.022, 0.021, 0.022, 0.018, 0.024, 0.018, 0.069),
    *(0.020, 0.027, 0.023, 0.030, 0.030, 0.018, 0.010, 0.012, 0.018, 0.139),
)
_SHARE_OUTSIDE_LARGEST = 0.367  # of the pairs
_VIDEOS_PER_PAIR_IN_LARGEST = 0.3875
_SMALLEST_GRAPH = 60  # pairs; fewer are all put outside the largest component


class PairGraph:
    """Videos and the pairs among them.

    Attributes:
        latents: Latent factors of each video, in file order.
        pairs: Row numbers of the two videos of each pair, int64 `[num_pairs, 2]`, in random order.
    """

    def __init__(self, world: World, rng: np.random.Generator, num_pairs: int) -> None:
        """Draw the graph, then let relatives inherit latent factors along its edges."""
        parents, pairs = _draw_graph(rng, num_pairs)
        latents = world.draw(rng, len(parents))
        # Parents come before their children; go down generation by generation.
        depth = np.zeros(len(parents), dtype=np.int64)
        for node in np.flatnonzero(parents >= 0).tolist():
            depth[node] = depth[parents[node]] + 1
        for generation in range(1, int(depth.max(initial=0)) + 1):
            nodes = np.flatnonzero(depth == generation)
            latents[nodes] = world.derive(rng, latents[parents[nodes]])
        # Relatives must not stand side by side in the file.
        place = rng.permutation(len(parents))
        self.latents: Latents = np.empty_like(latents)
        self.latents[place] = latents
        pairs = place[pairs]
        flipped = rng.random(len(pairs)) < 0.5
        pairs[flipped] = pairs[flipped, ::-1]
        self.pairs: npt.NDArray[np.int64] = pairs[rng.permutation(len(pairs))]

    def similarity(self, world: World) -> npt.NDArray[np.float64]:
        """Latent similarity of each pair."""
        return world.similarity(self.latents[self.pairs[:, 0]], self.latents[self.pairs[:, 1]])


def score_levels(similarities: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Scores in twentieths, 0..20: a monotone function of similarity that gives the published shares."""
    order = np.argsort(similarities, kind="stable")
    position = np.empty(len(order))
    position[order] = (np.arange(len(order)) + 0.5) / max(1, len(order))
    bounds = np.cumsum(LEVEL_SHARES)[:-1]
    return np.searchsorted(bounds, position, side="right")


def _draw_graph(rng: np.random.Generator, num_pairs: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Parent of each node (-1 = none; always an earlier node) and the edges, int64 `[num_pairs, 2]`."""
    num_small = num_pairs if num_pairs < _SMALLEST_GRAPH else round(_SHARE_OUTSIDE_LARGEST * num_pairs)
    parents: list[int] = []
    while num_small:
        edges = min(num_small, int(rng.choice((1, 2, 3, 6), p=(0.92, 0.05, 0.02, 0.01))))
        root = len(parents)
        parents.append(-1)
        for _ in range(edges):
            parents.append(int(rng.integers(root, len(parents))))
        num_small -= edges
    tree = np.array(parents, dtype=np.int64)
    extra = np.zeros((0, 2), dtype=np.int64)
    num_large = num_pairs - int((tree >= 0).sum())
    if num_large:
        size = round(_VIDEOS_PER_PAIR_IN_LARGEST * num_large)
        start = len(tree)
        large = start + (rng.random(size) * np.arange(size)).astype(np.int64)  # a random earlier node
        large[0] = -1
        tree = np.concatenate([tree, large])
        extra = _extra_edges(rng, tree, start, num_large - (size - 1))
    children = np.flatnonzero(tree >= 0)
    edges_array = np.stack([tree[children], children], axis=1)
    return tree, np.concatenate([edges_array, extra])


def _extra_edges(
    rng: np.random.Generator, tree: npt.NDArray[np.int64], start: int, count: int
) -> npt.NDArray[np.int64]:
    """Edges inside the largest component that its tree lacks: near relatives mostly, some by chance."""
    total = len(tree)
    inside = np.arange(start + 1, total)
    known = tree[inside] * total + inside
    chosen = np.zeros(0, dtype=np.int64)
    while len(chosen) < count:
        left = rng.integers(start, total, size=2 * count)
        # Two steps through the tree: the grandparent, or a sibling by way of a random child's parent.
        up = np.where(tree[left] >= 0, tree[left], left)
        near = np.where(tree[up] >= 0, tree[up], up)
        sibling = np.minimum(left + 1, total - 1)
        near = np.where(tree[sibling] == tree[left], sibling, near)
        right = np.where(rng.random(len(left)) < 0.7, near, rng.integers(start, total, size=len(left)))
        codes = np.minimum(left, right) * total + np.maximum(left, right)
        codes = np.setdiff1d(codes[left != right], known)
        chosen = np.union1d(chosen, codes)
    chosen = rng.choice(chosen, size=count, replace=False, shuffle=False)
    return np.stack(np.divmod(chosen, total), axis=1)
