"""Recipes and options held against the dataclass that they fill.

jsonargparse does the parsing; what it says of a wrong key or value is long, names types of Python and not the
recipe. So keys and plain values are looked at first, one recipe after the other.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from vidsim.common.errors import UserError

_FLAGS = ("-h", "--help", "--print_config")
_UNKNOWN = "no such setting"
_MISSING = object()


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The settings of a YAML file.

    Raises:
        UserError: No such file, not UTF-8, not YAML or a key that stands twice (names the line), no settings.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("no such recipe", file=path, field="--config", fix="the shipped ones are in launch/recipes/")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except UnicodeDecodeError as error:
        raise UserError(f"is not UTF-8 text (byte {error.start})", file=path) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise UserError(f"is not valid YAML ({error.problem})", file=path, record=line, fix="mend the line") from None
    except yaml.YAMLError as error:
        raise UserError(f"is not valid YAML ({error})", file=path) from None
    if not isinstance(content, dict) or not content:
        what = "holds no settings" if content is None or content == {} else "must hold `name: value` settings"
        raise UserError(what, file=path, fix="see the recipes in launch/recipes/")
    return content


def check_recipe(content: Mapping[str, Any], schema: type, file: str | Path) -> None:
    """Refuse keys that the dataclass does not have, and values of another type.

    Raises:
        UserError: Names the recipe, the key as `optimizer.learning_rate`, and the closest key or the right values.
    """
    for path, problem, fix in _problems(content, schema, schema):
        raise UserError(problem, file=file, field=path, fix=fix)


def check_options(arguments: Sequence[str], schema: type) -> None:
    """The same for `--part.field value` and `--part.field=value`.

    Raises:
        UserError: Names the option.
    """
    words = iter(arguments)
    for word in words:
        name, is_given, value = word.partition("=")
        if name in _FLAGS:
            continue
        if not word.startswith("--"):
            raise UserError(f"{word!r:.60} belongs to no option", fix="write --name value")
        is_missing = not is_given and (value := next(words, "--")).startswith("--")
        if name != "--config":
            is_judged = not (is_missing or name.endswith("+"))  # `--names+ a` appends to a list
            content = _parsed(value) if is_judged else _MISSING
            for key in reversed(name.removeprefix("--").removesuffix("+").split(".")):
                content = {key: content}
            for path, problem, fix in _problems(content, schema, schema):
                if problem == _UNKNOWN:
                    raise UserError("no such option", field=f"--{path}", fix=fix.replace("mean ", "mean --"))
                if is_judged:
                    raise UserError(problem, field=f"--{path}", fix=fix)
        if is_missing:
            raise UserError("needs a value", field=name, fix="--help explains it")


def _problems(content: Any, schema: type, root: type, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Key, what is wrong with it and how to mend it."""
    hints = typing.get_type_hints(schema)
    for name, value in content.items():
        path = f"{prefix}{name}"
        if name not in hints:
            yield path, _UNKNOWN, _closest(str(name), list(hints), root, prefix)
            continue
        hint, is_optional = _without_none(hints[name])
        if value is None and is_optional:
            continue
        if dataclasses.is_dataclass(hint):
            if isinstance(value, str) and value.endswith((".yaml", ".yml")):
                continue  # a file with these settings, which jsonargparse reads
            if isinstance(value, Mapping):
                yield from _problems(value, typing.cast(type, hint), root, f"{path}.")
            else:
                yield path, f"holds settings of its own, not {_shown(value)}", f"they are {_names(hint)}"
        elif typing.get_origin(hint) is list:
            yield from _list_problems(value, typing.get_args(hint)[0], root, path)
        elif problem := _wrong_value(value, hint):
            yield path, f"{_shown(value)} {problem}", _near_value(value, hint)


def _list_problems(value: Any, element: Any, root: type, path: str) -> Iterator[tuple[str, str, str]]:
    if not isinstance(value, list):
        yield path, f"must be a list, is {_shown(value)}", f"write [{'' if value is None else value}]"
        return
    for number, item in enumerate(value):
        if dataclasses.is_dataclass(element):
            if isinstance(item, Mapping):
                yield from _problems(item, typing.cast(type, element), root, f"{path}[{number}].")
            else:
                yield (
                    f"{path}[{number}]",
                    f"holds settings of its own, not {_shown(item)}",
                    f"they are {_names(element)}",
                )
        elif problem := _wrong_value(item, element):
            yield f"{path}[{number}]", f"{_shown(item)} {problem}", _near_value(item, element)


def _wrong_value(value: Any, hint: Any) -> str | None:
    """What is wrong with a plain value; None where nothing is, or where jsonargparse is to judge."""
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        return None if value in choices else f"is none of {', '.join(map(str, choices))}"
    if hint is int:
        return None if _reads_as(int, value) else "is not a whole number"
    if hint is float:
        return None if _reads_as(float, value) else "is not a number"
    if hint is bool:
        return None if isinstance(value, bool) else "is not true or false"
    if hint is str:
        return "is not text" if isinstance(value, list | dict) or value is None else None
    if typing.get_origin(hint) is tuple:
        kinds = typing.get_args(hint)
        if not isinstance(value, list) or len(value) != len(kinds):
            return f"is not a list of {len(kinds)}"
        return next(filter(None, map(_wrong_value, value, kinds)), None)
    return None


def _reads_as(kind: type[int] | type[float], value: Any) -> bool:
    """YAML reads 1e-4 as text, which is a number all the same."""
    if isinstance(value, bool) or not isinstance(value, (int, str) if kind is int else (int, float, str)):
        return False
    try:
        kind(value)
    except ValueError:
        return False
    return True


def _near_value(value: Any, hint: Any) -> str:
    choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
    near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    return f"did you mean {near[0]}?" if near else "--help explains it"


def _closest(name: str, siblings: list[str], root: type, prefix: str) -> str:
    """The key that was probably meant: a sibling, or one of that name elsewhere; otherwise all siblings."""
    if near := difflib.get_close_matches(name, siblings, n=1):
        return f"did you mean {prefix}{near[0]}?"
    elsewhere = dict(_all_names(root))
    if near := difflib.get_close_matches(name, elsewhere, n=1, cutoff=0.8):
        return f"did you mean {elsewhere[near[0]]}?"
    return f"{prefix.rstrip('.') or 'it'} has {', '.join(siblings)}"


def _all_names(schema: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Last part and whole path of every setting."""
    for name, hint in typing.get_type_hints(schema).items():
        yield name, f"{prefix}{name}"
        inner, _ = _without_none(hint)
        if dataclasses.is_dataclass(inner):
            yield from _all_names(typing.cast(type, inner), f"{prefix}{name}.")


def _without_none(hint: Any) -> tuple[Any, bool]:
    """A hint without `| None`, and whether it had it."""
    if typing.get_origin(hint) not in (types.UnionType, typing.Union):
        return hint, False
    others = [each for each in typing.get_args(hint) if each is not type(None)]
    return (others[0] if len(others) == 1 else hint), len(others) < len(typing.get_args(hint))


def _names(schema: Any) -> str:
    return ", ".join(field.name for field in dataclasses.fields(schema))


def _shown(value: Any) -> str:
    return "null" if value is None else f"{value!r:.60}"


def _parsed(value: str) -> Any:
    try:
        return yaml.load(value, _StrictLoader)
    except yaml.YAMLError:
        return value


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML readers silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(self.construct_object(key_node, deep=True))
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} stands twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)
