from __future__ import annotations

import pytest

from vidsim.common.arguments import ArgumentParser
from vidsim.common.errors import UserError


@pytest.fixture
def parser() -> ArgumentParser:
    parser = ArgumentParser(prog="vidsim thing")
    parser.add_argument("source")
    parser.add_argument("--out", required=True)
    parser.add_argument("--num_rows", "-n", type=int, default=3)
    parser.add_argument("--kind", choices=("a", "b"))
    return parser


def test_good_arguments_are_parsed(parser: ArgumentParser) -> None:
    options = parser.parse_args(["x", "--out=y", "-n", "-4"])
    assert (options.source, options.out, options.num_rows, options.kind) == ("x", "y", -4, None)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x --otu y", "--otu: no such option. Fix: did you mean --out?"),
        ("x --out y --num 5", "--num: no such option. Fix: did you mean --num_rows?"),  # no abbreviations
        ("x --out y --zzz=5", "--zzz: no such option. Fix: `vidsim thing --help` lists them"),
        ("x", "the following arguments are required: --out. Fix: `vidsim thing --help` explains them"),
        ("x --out y --num_rows many", "-n: invalid int value: 'many'. Fix: `vidsim thing --help` explains them"),
        ("x --out y --kind c", "--kind: invalid choice: 'c' (choose from "),
        ("x y --out z", "unrecognized arguments: y. Fix: `vidsim thing --help` explains them"),
        ("x --out", "--out: expected one argument. Fix: `vidsim thing --help` explains them"),
    ],
)
def test_a_wrong_argument_is_one_error(parser: ArgumentParser, line: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parser.parse_args(line.split())
    assert str(caught.value).startswith(message)


def test_what_follows_two_dashes_is_no_option(parser: ArgumentParser) -> None:
    assert parser.parse_args(["--out", "y", "--", "--otu"]).source == "--otu"


def test_help_still_ends_the_program(parser: ArgumentParser, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("usage: vidsim thing")
