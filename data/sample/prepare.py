"""Convert the bundled sample into a data set folder, through the same converter that a user's own table takes."""

from __future__ import annotations

import shutil
from pathlib import Path

from vidsim.common.errors import UserError
from vidsim.common.files import atomic_folder
from vidsim.data.convert import table

SAMPLE = Path(__file__).resolve().parent
_COPIED = ("pairs_train.tsv", "pairs_validation.tsv", "pairs_test.tsv", "holdout_ids.txt")


def prepare_sample(folder: Path) -> None:
    """Write `folder/videos` and the pair files, unless they are there.

    The folder appears whole or not at all, so several processes may call this at once.
    """
    if (folder / "videos" / "manifest.json").is_file():
        return
    try:
        with atomic_folder(folder) as temporary:
            options = ["--features", str(SAMPLE / "features.npy"), "--feature_id", "feature_id"]
            table.main([str(SAMPLE / "videos.jsonl"), *options, "--out", str(temporary / "videos")])
            for name in _COPIED:
                shutil.copyfile(SAMPLE / name, temporary / name)
    except UserError:
        if not (folder / "videos" / "manifest.json").is_file():  # not a race with another process
            raise
