"""Features given on the command line to a model that was trained on such streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vidsim.common.errors import UserError
from vidsim.data.feature_streams import FeatureStreams, open_features


def stream_options(words: Sequence[str]) -> dict[str, str]:
    """Stream name to path.

    Args:
        words: `NAME=PATH` each.

    Raises:
        UserError: Another word, or a name twice.
    """
    sources: dict[str, str] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not (name and equals and path) or name in sources:
            raise UserError(f"{word!r} is not NAME=PATH, each name once", field="--features")
        sources[name] = path
    return sources


def open_streams(sources: Mapping[str, str], ids: str | None, wanted: Mapping[str, int]) -> FeatureStreams:
    """Open features for a model.

    Args:
        sources: Stream name to features; see `open_features`.
        ids: Ids of the rows of `.npy` arrays; None: row numbers.
        wanted: Name and width of each stream that the model reads.

    Raises:
        UserError: A stream is missing, unknown or of another width.
    """
    if sources.keys() != wanted.keys():
        what = f"the model reads {', '.join(sorted(wanted))}, given are {', '.join(sorted(sources)) or 'none'}"
        fix = "give --features " + " ".join(f"{name}=PATH" for name in wanted)
        raise UserError(what, field="--features", fix=fix)
    features = open_features(sources, ids)
    for name, dim in features.dims.items():
        if dim != wanted[name]:
            what = f"has width {dim}, the model was trained on {wanted[name]}"
            fix = "give features of the same extractor as in training"
            raise UserError(what, file=sources[name], field=name, fix=fix)
    return features
