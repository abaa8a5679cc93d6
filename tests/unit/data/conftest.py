from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidsim.data.manifest import StreamInfo
from vidsim.data.shards import ShardWriter, write_manifest

DataSetWriter = Callable[..., Path]


@pytest.fixture
def write_data_set(tmp_path: Path) -> DataSetWriter:
    """Write rows as a data set of `num_shards` shards and return its folder."""

    def write(
        rows: Sequence[Mapping[str, Any]],
        name: str = "data",
        *,
        streams: Mapping[str, int] | None = None,
        num_shards: int = 1,
        has_tags: bool = True,
    ) -> Path:
        streams = {"frames": 4} if streams is None else streams
        folder = tmp_path / name
        infos = []
        for number, part in enumerate(np.array_split(np.arange(len(rows)), num_shards)):
            with ShardWriter(folder / f"data-{number:05d}.arrow", streams, source=f"source_{number}") as writer:
                for row in part.tolist():
                    writer.write(rows[row])
            infos.append(writer.info)
        made = {stream: StreamInfo(dim=dim, extractor="test") for stream, dim in streams.items()}
        write_manifest(folder, infos, made, has_tags=has_tags, command="test")
        return folder

    return write


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """Seven videos, among them empty text, no tags, no frames."""
    made: list[dict[str, Any]] = []
    for number in range(7):
        frames = (np.arange(number * 4).reshape(number, 4) + number).astype(np.float16)
        made.append(
            {
                "id": f"v{number}",
                "title": "标题" * number,
                "asr": "" if number % 2 else "speech 🎬",
                "tags": [str(tag) for tag in range(number % 3)],
                "category": None if number == 3 else number * 100,
                "frames": frames,
            }
        )
    return made
