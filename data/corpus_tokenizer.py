"""The tokenizer of a run: taken from a checkpoint or file, or trained on the rows that may be trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vidsim.common.errors import UserError
from vidsim.data import schema
from vidsim.data.arrow import Videos
from vidsim.data.tokenization import load_tokenizer, train_tokenizer


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Where the tokenizer comes from."""

    path: str | None = None
    """Checkpoint folder, `vocab.txt` or SentencePiece `.model`; null: that of `model.init_from`, else trained."""
    kind: Literal["wordpiece", "unigram"] = "wordpiece"
    """What is trained: WordPiece as BERT, or SentencePiece unigram."""
    vocab_size: int = 21_128
    """Entries of a trained vocabulary, special tokens included; fewer where the corpus gives no more."""

    def validate(self) -> None:
        """Refuse a vocabulary with room for special tokens only."""
        if self.vocab_size < 16:
            raise UserError(f"{self.vocab_size} is below 16", field="tokenizer.vocab_size")
        if self.path is not None and not Path(self.path).exists():
            raise UserError("no such file or folder", file=self.path, field="tokenizer.path")


def corpus_tokenizer(
    config: TokenizerConfig,
    init_from: str | None,
    videos: Videos,
    rows: Iterable[np.ndarray],
    folder: Path,
    *,
    keep: bool,
) -> Any:
    """Get the tokenizer of a run and keep it in the run folder.

    Args:
        config: Where it comes from.
        init_from: Text checkpoint of the encoder, if there is one.
        videos: All rows of the run.
        rows: Those that may be trained on; no other text is looked at.
        folder: Where it is saved.
        keep: Take the one that is saved there, if there is one.

    Returns:
        A fast tokenizer.
    """
    if keep and (folder / "tokenizer.json").is_file():
        return load_tokenizer(str(folder))
    source = config.path or init_from
    if source is not None:
        tokenizer = load_tokenizer(source)
        tokenizer.save_pretrained(folder)
        return tokenizer
    return train_tokenizer(texts(videos, rows), config.kind, config.vocab_size, folder)


def texts(videos: Videos, rows: Iterable[np.ndarray]) -> Iterator[str]:
    """Titles and speech texts of some rows, empty ones left out."""
    for numbers in rows:
        for start in range(0, len(numbers), 1024):
            chunk = [int(row) for row in numbers[start : start + 1024]]
            for row in videos.read(chunk, [schema.TITLE, schema.ASR]):
                yield from (text for text in (row[schema.TITLE], row[schema.ASR]) if text)
