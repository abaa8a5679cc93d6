"""Content-only co-watch learning by the two commands, as the recommendation benchmarks use it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import vidsim.data.cowatch
import vidsim.finetune.cowatch
from vidsim.common.errors import UserError
from vidsim.common.files import read_json, write_json
from vidsim.data.embeddings import read_embeddings


def require_same_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """Refuse to go on in a folder whose figures come from other settings.

    Raises:
        UserError: Names what differs.
    """
    path = out / "settings.json"
    plain = json.loads(json.dumps(settings))
    if not path.is_file():
        write_json(path, plain)
        return
    known = read_json(path)
    if differing := [name for name in {**known, **plain} if known.get(name) != plain.get(name)]:
        what = f"was made with other settings: {', '.join(differing)}"
        raise UserError(what, file=out, field="--out", fix="choose another folder, or remove it")


def train_towers(
    run: Path, watches: Sequence[str], features: Mapping[str, Path], training: Sequence[str], seed: int
) -> npt.NDArray[np.float32]:
    """Make the graph and train on it; a run that is done is only read, one that was cut off goes on.

    Args:
        run: Run folder; the graph and the log lie beside it.
        watches: Options of `vidsim cowatch`, but for --out and --seed.
        features: Name of each stream and its array [videos, D]; ids are the row numbers.
        training: Options of `vidsim finetune-cowatch` that are not said by the others.
        seed: Of the split and of training.

    Returns:
        Unit vectors float32 [videos, E], by row number.
    """
    if not (run / "embeddings" / "embeddings.json").is_file():
        run.parent.mkdir(parents=True, exist_ok=True)
        graph = run.with_name(f"{run.name}-graph")
        streams = ", ".join(f"{name}: {path}" for name, path in features.items())
        with run.with_name(f"{run.name}.log").open("a") as log, redirect_stdout(log), redirect_stderr(log):
            if not graph.exists():
                vidsim.data.cowatch.main([*watches, "--seed", str(seed), "--out", str(graph)])
            options = ["--graph", str(graph), "--features", f"{{{streams}}}", *training, "--seed", str(seed)]
            resume = ["--resume"] if (run / "config.yaml").is_file() else []
            if code := vidsim.finetune.cowatch.main([*options, "--output_dir", str(run), *resume]):
                raise SystemExit(code)  # interrupted: 130
    embeddings = read_embeddings(run / "embeddings")
    return embeddings.vectors[embeddings.rows_of([str(row) for row in range(len(embeddings))])]
