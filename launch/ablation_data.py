"""The data of an ablation: folders and files that a list names, or a competition corpus generated for it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from vidsim.common.errors import UserError
from vidsim.common.files import sha256_file, write_json
from vidsim.data import splits, synthetic
from vidsim.data.arrow import concat_videos, open_videos
from vidsim.data.convert import aiac
from vidsim.data.pairs import read_pairs
from vidsim.data.synthetic import GeneratorConfig

_NAMED = ("pretrain", "exclude", "tags", "videos", "train", "validation", "test_videos", "test")
_NEEDED = ("videos", "train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class AblationData:
    """Either `generate`, or folders and files. Paths start from the working folder, as in every recipe."""

    generate: GeneratorConfig | None = None
    """A made-up competition with hidden test pairs; its pairs are split video-disjoint."""
    fractions: list[float] = field(default_factory=lambda: [0.8, 0.1, 0.1])
    """Shares of the generated labelled pairs: trained on, validated on, left aside."""
    pretrain: list[str] = field(default_factory=list)
    """Data set folders to pretrain on."""
    exclude: list[str] = field(default_factory=list)
    """Ids or pairs whose videos are not pretrained on; name those of validation and test pairs."""
    tags: str | None = None
    """Tag vocabulary; null: the most frequent tags of the training rows."""
    videos: list[str] = field(default_factory=list)
    """Data set folders with the videos of training and validation pairs."""
    train: str | None = None
    """Training pairs."""
    validation: str | None = None
    """Validation pairs, which choose the checkpoint."""
    test_videos: list[str] = field(default_factory=list)
    """Data set folders with the videos of test pairs; `videos` by default."""
    test: list[str] = field(default_factory=list)
    """Files of test pairs, pooled into one score."""

    def validate(self) -> None:
        """Refuse both kinds at once, and neither.

        Raises:
            UserError: Names the field.
        """
        given = [name for name in _NAMED if getattr(self, name)]
        if self.generate is not None:
            if given:
                raise UserError("goes not together with `generate`", field=given[0], fix="remove one of them")
            self.generate.resolved()
            if len(self.fractions) != 3:
                raise UserError(f"{self.fractions} is not [train, validation, rest]", field="fractions")
            return
        for name in _NEEDED:
            if not getattr(self, name):
                raise UserError("is not given", field=name, fix="name it, or let a corpus be made with `generate`")


@dataclass(frozen=True, kw_only=True)
class DataFiles:
    """Where everything is; paths as the training commands read them.

    Attributes:
        folder: Of a generated corpus, else None.
        pretrain: Data set folders.
        exclude: Ids not to pretrain on.
        tags: Tag vocabulary.
        videos: Data set folders of the training and validation pairs.
        train: Training pairs.
        validation: Validation pairs.
        test_videos: Data set folders of the test pairs.
        test: Files of test pairs.
    """

    folder: Path | None
    pretrain: list[str]
    exclude: list[str]
    tags: str | None
    videos: list[str]
    train: str
    validation: str
    test_videos: list[str]
    test: list[str]

    def pretrain_fields(self) -> dict[str, Any]:
        """What they are to `vidsim pretrain`: one stage of one epoch, which `data.epoch_scale` multiplies."""
        stages = [{"data": self.pretrain, "num_epochs": 1.0}]
        return {"data": {"stages": stages, "exclude": self.exclude, "tags": self.tags}}

    def finetune_fields(self) -> dict[str, Any]:
        """What they are to `vidsim finetune`."""
        return {"data": {"videos": self.videos, "pairs": self.train, "validation": self.validation}}

    def exist(self) -> bool:
        """Whether a generated corpus is complete; what a list names is there or an error."""
        return self.folder is None or (self.folder / "corpus.json").is_file()

    def check(self) -> None:
        """Open everything; look up every video.

        Raises:
            UserError: Something is missing or malformed, or a test video is trained on.
        """
        concat_videos([open_videos(name) for name in dict.fromkeys(self.pretrain or self.videos)])
        videos = concat_videos([open_videos(name) for name in self.videos])
        trained = set()
        for name in (self.train, self.validation):
            ids = read_pairs(name).unique_ids()
            videos.rows_of(ids, asked_by=name)
            trained.update(ids)
        test_videos = concat_videos([open_videos(name) for name in self.test_videos])
        for name in self.test:
            ids = read_pairs(name).unique_ids()
            test_videos.rows_of(ids, asked_by=name)
            if shared := trained.intersection(ids):
                raise UserError(
                    f"{len(shared):,} videos stand in training or validation pairs too, the first is {min(shared)}",
                    file=name,
                    fix="`vidsim split` makes parts that share no video",
                )

    def fingerprint(self) -> str:
        """Hash of the content of all videos and files, wherever they lie."""
        folders = (self.pretrain, self.videos, self.test_videos)
        files = (self.exclude, [self.tags] if self.tags else [], [self.train], [self.validation], self.test)
        content = [[open_videos(name).fingerprint() for name in names] for names in folders]
        content += [[sha256_file(name) for name in names] for names in files]
        return hash_of(content)


def hash_of(value: Any) -> str:
    """Ten hexadecimal digits of the SHA-256 of plain JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


def data_files(data: AblationData, out: Path) -> DataFiles:
    """The files of a list's data.

    Args:
        data: From the list.
        out: Where a corpus is generated, `out/corpora/<hash of its settings>`.
    """
    if data.generate is None:
        return DataFiles(
            folder=None,
            pretrain=_absolute(data.pretrain),
            exclude=_absolute(data.exclude),
            tags=_absolute([data.tags])[0] if data.tags else None,
            videos=_absolute(data.videos),
            train=_absolute([str(data.train)])[0],
            validation=_absolute([str(data.validation)])[0],
            test_videos=_absolute(data.test_videos or data.videos),
            test=_absolute(data.test),
        )
    folder = (out / "corpora" / hash_of([asdict(data.generate.resolved()), data.fractions])).absolute()
    return DataFiles(
        folder=folder,
        pretrain=[str(folder / "pointwise"), str(folder / "pairwise")],
        exclude=[str(folder / "split/holdout_ids.txt")],
        tags=str(folder / "tags.txt"),
        videos=[str(folder / "pairwise")],
        train=str(folder / "split/train.tsv"),
        validation=str(folder / "split/validation.tsv"),
        test_videos=[str(folder / "test_a"), str(folder / "test_b")],
        test=[str(folder / "hidden" / f"test_{part}_pairs.tsv") for part in "ab"],
    )


def _absolute(paths: Iterable[str]) -> list[str]:
    return [str(Path(path).absolute()) for path in paths]


def make_data(data: AblationData, files: DataFiles) -> None:
    """Generate, convert and split a corpus; one that was cut off is begun again, a complete one is kept.

    Raises:
        UserError: The disk is full, or numbers from which no corpus can be made.
    """
    folder = files.folder
    if data.generate is None or folder is None or files.exist():
        return
    shutil.rmtree(folder, ignore_errors=True)
    source = folder / "source"
    with redirect_stdout(StringIO()) as said:
        synthetic.generate(source, data.generate)
        aiac.main([str(source), "--out", str(folder), "--frame_dim", str(data.generate.frame_dim)])
        fractions = [str(fraction) for fraction in data.fractions]
        splits.main([str(folder / "pairs.tsv"), "--out", str(folder / "split"), "--fractions", *fractions])
    shutil.move(source / "hidden", folder / "hidden")
    shutil.rmtree(source)  # the TFRecords, which are converted now
    settings = asdict(data.generate.resolved())
    write_json(folder / "corpus.json", {"generator": settings, "said": said.getvalue().splitlines()})
