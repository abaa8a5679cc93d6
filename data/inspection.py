"""What a data set holds: counts, lengths, streams, tags, pairs and a few rows, for people or as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from vidsim.common.arguments import ArgumentParser
from vidsim.common.checks import require_at_least
from vidsim.data import schema
from vidsim.data.arrow import Videos, open_videos
from vidsim.data.pairs import Pairs, read_pairs, tie_ceiling
from vidsim.data.shards import summarise_histogram
from vidsim.data.tags import TagVocabulary
from vidsim.data.verify import PAIRS_FILE, TAGS_FILE, find_data_sets

_MAX_LEVELS = 30
_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def inspect_folder(folder: str | Path, *, num_rows: int = 3, num_tags: int = 10) -> dict[str, Any]:
    """Describe all data sets, pairs and tag lists in a folder and below it, as JSON values.

    Raises:
        UserError: There is no data set, or one cannot be opened.
    """
    folder = Path(folder)
    data_sets = [inspect_videos(open_videos(path), num_rows, num_tags) for path in find_data_sets(folder)]
    pairs = {str(path): inspect_pairs(read_pairs(path)) for path in sorted(folder.rglob(PAIRS_FILE))}
    tags = {str(path): TagVocabulary.from_file(path).size for path in sorted(folder.rglob(TAGS_FILE))}
    return {"folder": str(folder), "data_sets": data_sets, "pairs": pairs, "tag_files": tags}


def inspect_videos(videos: Videos, num_rows: int = 3, num_tags: int = 10) -> dict[str, Any]:
    """Describe a data set; the columns are scanned in Arrow, the vectors are not read."""
    manifest = videos.manifest
    lengths = {
        schema.TITLE: pc.utf8_length(videos.column(schema.TITLE)),
        schema.ASR: pc.utf8_length(videos.column(schema.ASR)),
        schema.TAGS: pc.list_value_length(videos.column(schema.TAGS)),
    }
    lengths |= {name: videos.column(schema.count_column(name)) for name in videos.streams}
    categories = videos.column(schema.CATEGORY)
    files = [folder / shard.file for folder in videos.folders for shard in manifest.shards]
    tags = TagVocabulary.build(videos, num_tags) if pc.any(pc.greater(lengths[schema.TAGS], 0)).as_py() else None
    return {
        "name": videos.name,
        "num_videos": len(videos),
        "num_shards": len(files),
        "num_bytes": sum(path.stat().st_size for path in files),
        "fingerprint": videos.fingerprint(),
        "created_by": dict(manifest.created_by),
        "has_tags": manifest.has_tags,
        "streams": {name: {"dim": info.dim, "extractor": info.extractor} for name, info in manifest.streams.items()},
        "lengths": {name: _summarise(column, len(videos)) for name, column in lengths.items() if len(videos)},
        "category": {
            "num_distinct": pc.count_distinct(categories).as_py(),
            "num_null": categories.null_count,
        },
        "top_tags": dict(zip(tags.tags, tags.counts, strict=True)) if tags else {},
        "num_distinct_tags": _count_distinct_tags(videos),
        "rows": [_show_row(videos, row) for row in range(min(num_rows, len(videos)))],
    }


def _summarise(column: pa.ChunkedArray, num_videos: int) -> dict[str, float]:
    counted = pc.value_counts(column)
    values, rows = counted.field("values").to_pylist(), counted.field("counts").to_pylist()
    summary: dict[str, float] = dict(summarise_histogram(dict(zip(values, rows, strict=True))))
    return summary | {"share_empty": summary["num_empty"] / num_videos}


def _count_distinct_tags(videos: Videos) -> int:
    chunks = [chunk.flatten() for chunk in videos.column(schema.TAGS).chunks]
    return int(pc.count_distinct(pa.chunked_array(chunks, pa.string())).as_py())


def _show_row(videos: Videos, row: int) -> dict[str, Any]:
    cells = videos[row]
    shown: dict[str, Any] = {name: cells[name] for name in (schema.ID, schema.TITLE, schema.ASR)}
    shown |= {schema.TAGS: cells[schema.TAGS], schema.CATEGORY: cells[schema.CATEGORY]}
    for name in videos.streams:
        shown[name] = {"shape": list(cells[name].shape)}
        if cells[name].size:
            exact = cells[name].astype(np.float64)
            shown[name] |= {"mean": round(float(exact.mean()), 4), "sd": round(float(exact.std()), 4)}
    return shown


def inspect_pairs(pairs: Pairs) -> dict[str, Any]:
    """Describe pairs: score levels or quantiles, what ties allow at best, the graph that they form."""
    values, counts = np.unique(pairs.score, return_counts=True)
    ids = pairs.unique_ids()
    number = {id: position for position, id in enumerate(ids)}
    ends = ([number[id] for id in pairs.id1], [number[id] for id in pairs.id2])
    graph = coo_array((np.ones(len(pairs), dtype=bool), ends), shape=(len(ids), len(ids)))
    num_components, component = connected_components(graph, directed=False)
    ordered = {frozenset(pair) for pair in zip(pairs.id1, pairs.id2, strict=True)}
    return {
        "num_pairs": len(pairs),
        "num_videos": len(ids),
        "num_self_pairs": sum(first == second for first, second in zip(pairs.id1, pairs.id2, strict=True)),
        "num_repeated_pairs": len(pairs) - len(ordered),
        "num_components": int(num_components),
        "largest_component_videos": int(np.bincount(component).max()),
        "score_mean": float(pairs.score.mean()),
        "score_sd": float(pairs.score.std()),
        "num_levels": len(values),
        "levels": dict(zip(values.tolist(), counts.tolist(), strict=True)) if len(values) <= _MAX_LEVELS else {},
        "quantiles": {str(q): float(np.quantile(pairs.score, q)) for q in _QUANTILES},
        "tie_ceiling": tie_ceiling(pairs.score) if len(values) > 1 else None,
    }


def format_report(report: dict[str, Any]) -> str:
    """The report as aligned text."""
    lines: list[str] = []
    for data_set in report["data_sets"]:
        lines += [*_format_data_set(data_set), ""]
    for path, found in report["pairs"].items():
        lines += [*_format_pairs(path, found), ""]
    lines += [f"tags  {path}: {size:,} tags" for path, size in report["tag_files"].items()]
    return "\n".join(lines).rstrip()


def _format_data_set(found: dict[str, Any]) -> list[str]:
    lines = [
        f"data set  {found['name']}: {found['num_videos']:,} videos in {found['num_shards']:,} shards, "
        f"{found['num_bytes'] / 1e6:,.1f} MB"
    ]
    for name, stream in found["streams"].items():
        lines.append(f"  stream {name}: float16 [n, {stream['dim']}], extractor {stream['extractor'] or 'not known'}")
    header = ("length of", "mean", "p50", "p75", "p99", "max", "empty")
    lines.append("  " + f"{header[0]:<12}" + "".join(f"{name:>9}" for name in header[1:]))
    for name, length in found["lengths"].items():
        numbers = "".join(f"{length[key]:>9,}" for key in ("p50", "p75", "p99", "max"))
        lines.append(f"  {name:<12}{length['mean']:>9,.1f}{numbers}{length['share_empty']:>9.1%}")
    category = found["category"]
    lines.append(f"  category: {category['num_distinct']:,} values, {category['num_null']:,} videos without")
    if found["has_tags"]:
        top = ", ".join(f"{tag} ({count:,})" for tag, count in found["top_tags"].items())
        lines.append(f"  tags: {found['num_distinct_tags']:,} values; most frequent: {top or 'none'}")
    else:
        lines.append("  tags: this data set has none")
    for row in found["rows"]:
        lines.append(f"  row {row[schema.ID]}: {_shorten(row[schema.TITLE])!r}, speech {_shorten(row[schema.ASR])!r}")
        vectors = ", ".join(f"{name} {row[name]['shape']}" for name in found["streams"])
        lines.append(
            f"    {vectors}; tags {', '.join(row[schema.TAGS][:8]) or 'none'}; category {row[schema.CATEGORY]}"
        )
    return lines


def _format_pairs(path: str, found: dict[str, Any]) -> list[str]:
    ceiling = "not defined" if found["tie_ceiling"] is None else f"{found['tie_ceiling']:.4f}"
    lines = [
        f"pairs  {path}: {found['num_pairs']:,} pairs of {found['num_videos']:,} videos",
        f"  graph: {found['num_components']:,} components, "
        f"the largest has {found['largest_component_videos']:,} videos",
        f"  {found['num_self_pairs']:,} with the same video twice, {found['num_repeated_pairs']:,} repeated",
        f"  score: mean {found['score_mean']:.4f}, sd {found['score_sd']:.4f}, {found['num_levels']} levels",
        f"  best Spearman of a prediction without ties: {ceiling}",
    ]
    if found["levels"]:
        for score, count in found["levels"].items():
            share = count / found["num_pairs"]
            lines.append(f"  {score:>8g} {count:>10,} {share:>7.1%} {'#' * round(40 * share)}")
    else:
        lines.append("  quantiles: " + ", ".join(f"{q}: {value:.4f}" for q, value in found["quantiles"].items()))
    return lines


def _shorten(text: str, length: int = 40) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def main(argv: list[str] | None = None) -> int:
    """`vidsim inspect`."""
    parser = ArgumentParser(
        prog="vidsim inspect",
        description="Show what a data set holds: counts, lengths, streams, tags, pairs and a few rows.",
        epilog="example: vidsim inspect data/aiac --rows 5",
    )
    parser.add_argument("folder", type=Path, help="a data set, or a folder that holds some")
    parser.add_argument("--rows", type=int, default=3, help="how many rows to show (default 3)")
    parser.add_argument("--tags", type=int, default=10, help="how many tags to show (default 10)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    require_at_least(vars(args), {"rows": 0, "tags": 1}, prefix="--")
    report = inspect_folder(args.folder, num_rows=args.rows, num_tags=args.tags)
    print(json.dumps(report, ensure_ascii=False, indent=2, allow_nan=False) if args.json else format_report(report))
    return 0
