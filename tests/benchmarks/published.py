"""The published way of everything around the model: reading, loading, fusing and scoring.

Written from descriptions, with what they cost: all rows live in Python objects; a row becomes a dictionary of padded
float32 tensors and 10,000 dense targets in `__getitem__`; records are protobuf messages; pairs are scored one by one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from scipy.stats import spearmanr
from sklearn.decomposition import TruncatedSVD
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.preprocessing import MultiLabelBinarizer
from torch.utils.data import DataLoader, Dataset

from vidsim.data.arrow import Videos

_TITLE_TOKENS, _TEXT_IDS, _FRAMES = 33, 36, 32


class PublishedRows(Dataset[dict[str, Any]]):
    """Every video tokenised and in memory; an item is padded to the fixed lengths.

    Args:
        videos: Where they come from. The published loader parsed TFRecords; see `parse_records` for its cost.
        tokenizer: Called once a title.
        num_tags: Width of the dense targets.
    """

    def __init__(self, videos: Videos, tokenizer: Any, num_tags: int) -> None:
        """Read everything."""
        self.dim = videos.streams["frames"]
        self.binarizer = MultiLabelBinarizer(classes=list(range(num_tags))).fit([[]])
        self.rows: dict[str, list[Any]] = {"id": [], "title": [], "frames": [], "tags": []}
        ends = tokenizer.cls_token_id, tokenizer.sep_token_id
        for video in videos:
            encoded = tokenizer(video["title"], add_special_tokens=False, truncation=True, max_length=_TITLE_TOKENS)
            self.rows["id"].append(video["id"])
            self.rows["title"].append([*ends, *encoded["input_ids"], ends[1]])
            self.rows["frames"].append([np.array(frame) for frame in video["frames"]])
            self.rows["tags"].append([int(tag) for tag in video["tags"]])

    def __len__(self) -> int:
        """Number of videos."""
        return len(self.rows["id"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One video, padded."""
        title, frames = self.rows["title"][index], self.rows["frames"][index]
        padding = _TEXT_IDS - len(title)
        features = np.zeros((_FRAMES, self.dim), dtype=np.float32)
        features[: len(frames)] = np.array(frames[:_FRAMES], dtype=np.float32)
        return {
            "id": self.rows["id"][index],
            "input_ids": torch.tensor(title + [0] * padding),
            "attention_mask": torch.tensor([1] * len(title) + [0] * padding),
            "frames": torch.from_numpy(features),
            "frame_mask": torch.tensor([1] * len(frames) + [0] * (_FRAMES - len(frames))),
            "tags": torch.tensor(self.binarizer.transform([self.rows["tags"][index]])[0], dtype=torch.float32),
        }


def loader(rows: PublishedRows, batch_size: int, num_workers: int) -> DataLoader[dict[str, Any]]:
    """Shuffled batches."""
    return DataLoader(rows, batch_size=batch_size, shuffle=True, num_workers=num_workers, drop_last=True)


def _example_class() -> Any:
    """The message `tf.train.Example`, from its fields alone."""
    file = descriptor_pb2.FileDescriptorProto(name="benchmark_example.proto", package="benchmark", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, kind in (
        ("BytesList", kinds.TYPE_BYTES),
        ("FloatList", kinds.TYPE_FLOAT),
        ("Int64List", kinds.TYPE_INT64),
    ):
        file.message_type.add(name=name).field.add(name="value", number=1, type=kind, label=kinds.LABEL_REPEATED)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("BytesList", "FloatList", "Int64List"), 1):
        feature.field.add(
            name=name.lower(), number=number, type=kinds.TYPE_MESSAGE, label=kinds.LABEL_OPTIONAL,
            type_name=f".benchmark.{name}", oneof_index=0,
        )  # fmt: skip
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    entry.field.add(
        name="value", number=2, type=kinds.TYPE_MESSAGE, label=kinds.LABEL_OPTIONAL, type_name=".benchmark.Feature"
    )
    features.field.add(
        name="feature", number=1, type=kinds.TYPE_MESSAGE, label=kinds.LABEL_REPEATED,
        type_name=".benchmark.Features.FeatureEntry",
    )  # fmt: skip
    example = file.message_type.add(name="Example")
    example.field.add(
        name="features", number=1, type=kinds.TYPE_MESSAGE, label=kinds.LABEL_OPTIONAL, type_name=".benchmark.Features"
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("benchmark.Example"))


def parse_records(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a TFRecord file by protobuf messages; checksums are skipped, as the published readers do."""
    message = _example_class()
    with path.open("rb") as file:
        while header := file.read(12):
            data = file.read(struct.unpack("<Q", header[:8])[0])
            file.read(4)
            example = message()
            example.ParseFromString(data)
            feature = example.features.feature
            frames = [np.frombuffer(frame, dtype=np.float16) for frame in feature["frame_feature"].byteslist.value]
            yield {
                "id": feature["id"].byteslist.value[0].decode(),
                "title": feature["title"].byteslist.value[0].decode(),
                "asr": feature["asr_text"].byteslist.value[0].decode(),
                "tags": [str(tag) for tag in feature["tag_id"].int64list.value],
                "category": feature["category_id"].int64list.value[0],
                "frames": np.stack(frames).tobytes(),
                "num_frames": len(frames),
            }


def convert(source: Path, target: Path) -> int:
    """The plain way to an Arrow file: all rows into a list, the list into a table."""
    table = pa.Table.from_pylist(list(parse_records(source)))
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=500)
    return int(table.num_rows)


def fuse(members: Sequence[np.ndarray], dim: int) -> tuple[np.ndarray, np.ndarray]:
    """L2, concatenation with equal shares, TruncatedSVD with 50 iterations, in float64 as read from JSON.

    Returns:
        Fused float64 [N, dim] and the components float64 [D, dim].
    """
    parts = [member.astype(np.float64) for member in members]
    parts = [part / np.linalg.norm(part, axis=1, keepdims=True) * np.sqrt(1 / len(parts)) for part in parts]
    svd = TruncatedSVD(n_components=dim, n_iter=50, random_state=2021)
    return svd.fit_transform(np.concatenate(parts, axis=1)), svd.components_.T


def score(vectors: dict[str, list[float]], id1: Sequence[str], id2: Sequence[str], labels: Sequence[float]) -> float:
    """Spearman correlation, one cosine after the other."""
    cosines = []
    for first, second in zip(id1, id2, strict=True):
        pair = np.array([vectors[first]]), np.array([vectors[second]])
        cosines.append(cosine_similarity(*pair)[0][0])
    return float(spearmanr(cosines, labels).statistic)
