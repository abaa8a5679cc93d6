"""The `vidsim` command: finds the command's own `main` and hands the arguments over.

Modules are imported only when their command is called, so that `vidsim --help` and the commands that need no
torch start at once.
"""

from __future__ import annotations

import contextlib
import difflib
import gc
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version

from vidsim.common.entry import run_entry
from vidsim.common.errors import UserError

COMMANDS: dict[str, dict[str, str]] = {
    "Data": {
        "convert": "turn competition files or your own tables into a data set folder",
        "generate": "make a synthetic data set of any size, for tests and benchmarks",
        "verify": "re-check every shard of a data set folder against its manifest",
        "inspect": "show what a data set folder holds",
        "split": "split labelled pairs so that no video of a test pair is trained on",
        "cowatch": "make the graph of videos watched one after another",
    },
    "Training": {
        "pretrain": "pretrain the encoder on unlabelled videos",
        "finetune": "finetune a checkpoint on labelled pairs",
        "finetune-cowatch": "learn from what is watched together: an embedding of given features, or the encoder",
        "finetune-annotation": "learn to tag videos from given features",
        "embed": "write the embeddings of a data set with a checkpoint",
        "embed-features": "write the embeddings of given features with what finetune-cowatch learned",
        "ablate": "compare variants of a recipe over several seeds",
        "report": "one HTML page about a run: curves, numbers, settings",
    },
    "Using embeddings": {
        "ensemble": "fuse the embeddings of several models into one file",
        "score": "Spearman of embeddings on labelled pairs, with its interval",
        "submit": "write the competition's result.zip from embeddings",
        "index": "make an index for fast search in many videos",
        "search": "the videos most like a given one",
        "search-video": "the videos most like new ones, from their files",
        "related": "the most similar videos of every video, as a table",
        "tag": "the most probable tags of videos, with what finetune-annotation learned",
        "evaluate": "how well embeddings find videos that are watched together",
        "recommend": "what users may like, from what they have watched",
        "factors": "embeddings from who watched what, to recommend by",
    },
    "All of it": {
        "demo": "run the whole path on the bundled sample",
    },
}


def main(argv: list[str] | None = None) -> int:
    """Run `vidsim ARGV`; returns the exit code (see `vidsim.common.entry.run_entry`)."""
    return run_entry(dispatch, argv)


def dispatch(argv: list[str] | None) -> int:
    """Find the command and call its `main`.

    Raises:
        UserError: There is no such command; names the closest one.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else None
    match name:
        case None:
            print(usage(), file=sys.stderr)
            return 2
        case "-h" | "--help" | "help":
            print(usage())
            return 0
        case "-V" | "--version":
            print(f"vidsim {version('vidsim')}")
            return 0
    with _garbage_collection_paused():
        command = command_of(name)
    return command(words[1:])


def command_of(name: str) -> Callable[[list[str] | None], int]:
    """Import a command; returns its `main`.

    Raises:
        UserError: There is no such command; names the closest one.
    """
    match name:
        case "convert":
            from vidsim.data.convert.run import main as command
        case "generate":
            from vidsim.data.synthetic import main as command
        case "verify":
            from vidsim.data.verify import main as command
        case "inspect":
            from vidsim.data.inspection import main as command
        case "split":
            from vidsim.data.splits import main as command
        case "cowatch":
            from vidsim.data.cowatch import main as command
        case "pretrain":
            from vidsim.pretrain.run import main as command
        case "finetune":
            from vidsim.finetune.run import main as command
        case "finetune-cowatch":
            from vidsim.finetune.cowatch import main as command
        case "finetune-annotation":
            from vidsim.finetune.annotation import main as command
        case "embed":
            from vidsim.finetune.embed import main as command
        case "embed-features":
            from vidsim.finetune.cowatch_embed import main as command
        case "ablate":
            from vidsim.launch.ablate import main as command
        case "report":
            from vidsim.engine.report_page import main as command
        case "ensemble":
            from vidsim.ensemble.fuse import main as command
        case "score":
            from vidsim.ensemble.score import main as command
        case "submit":
            from vidsim.ensemble.submission import main as command
        case "index":
            from vidsim.retrieval.build import main as command
        case "search":
            from vidsim.retrieval.search import main as command
        case "search-video":
            from vidsim.launch.search_video import main as command
        case "related":
            from vidsim.retrieval.related import main as command
        case "evaluate":
            from vidsim.retrieval.evaluate import main as command
        case "recommend":
            from vidsim.retrieval.recommend import main as command
        case "factors":
            from vidsim.retrieval.recommend_factors import main as command
        case "tag":
            from vidsim.finetune.annotation_tag import main as command
        case "demo":
            from vidsim.launch.demo import main as command
        case _:
            raise unknown_command(name)
    return command


@contextlib.contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """Imports make a million objects that stay: going through them again and again is a quarter of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # or the first collection afterwards would go through them after all
        gc.enable()


def usage() -> str:
    """The help page: every command with its line, by stage."""
    lines = ["usage: vidsim COMMAND [options]      vidsim COMMAND --help explains one command", ""]
    for stage, commands in COMMANDS.items():
        lines += [stage, *(f"  {name:<19} {text}" for name, text in commands.items()), ""]
    lines += [
        "Options",
        "  --debug    show the traceback behind an error line; works with every command",
        "  --version  print the version",
        "",
        "On several GPUs: `accelerate launch pretrain/run.py` takes the options of `vidsim pretrain`.",
    ]
    return "\n".join(lines)


def unknown_command(name: str) -> UserError:
    """The error for a name that is no command, with the closest that is."""
    names = [command for commands in COMMANDS.values() for command in commands]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    fix = f"did you mean `vidsim {close[0]}`?" if close else "`vidsim --help` lists the commands"
    return UserError(f"'{name}' is not a vidsim command", fix=fix)


if __name__ == "__main__":
    sys.exit(main())
