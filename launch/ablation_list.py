"""A list for `vidsim ablate`: YAML to data, base settings and variants, each checked before anything is trained.

Settings are laid over each other part by part: recipes, then the list's own fields, then the variant's. They are then
read by the same code as `vidsim pretrain` and `vidsim finetune`, so every default is spelled out; two variants with
equal settings are therefore recognised as one, however they are written.
"""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from vidsim.common.errors import UserError
from vidsim.data.synthetic import GeneratorConfig
from vidsim.engine.recipes import check_recipe, read_recipe
from vidsim.engine.settings import parse_settings
from vidsim.finetune.config import FinetuneConfig
from vidsim.launch.ablation_data import AblationData, DataFiles, data_files
from vidsim.pretrain.config import PretrainConfig

Fields = dict[str, Any]
RECIPES = "recipes"
# Set for each cell; in a list they would do nothing or break the comparison.
_OF_A_CELL = ("seed", "output_dir", "resume", "dry_run")
_PLACEHOLDER = "set for each cell"


@dataclass(frozen=True, kw_only=True)
class VariantSettings:
    """What a variant changes."""

    pretrain: Any = field(default_factory=dict)
    """Fields laid over the list's `pretrain`; null: no pretraining, finetuning starts from random weights."""
    finetune: Any = field(default_factory=dict)
    """Fields laid over the list's `finetune`."""
    teacher: str | None = None
    """Variant whose embeddings, of the same seed, are the teacher for `task.distill_weight`."""
    against: str | None = None
    """Variant with which it is compared seed by seed; null: the list's baseline."""


@dataclass(frozen=True, kw_only=True)
class ListSettings:
    """A whole list."""

    data: AblationData
    """Videos and pairs, the same for all variants."""
    baseline: str
    """The variant with which the others are compared."""
    variants: Any
    """Name of each variant and what it changes."""
    title: str = ""
    """Headline of the table; the file's name by default."""
    pretrain: Any = None
    """Base settings of `vidsim pretrain`, besides the data; null: `finetune.init_from` names a checkpoint."""
    finetune: Any = field(default_factory=dict)
    """Base settings of `vidsim finetune`, besides the data."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A row of the table.

    Attributes:
        name: As in the list.
        changes: What it changes, as `finetune.task.loss: lbpc`.
        pretrain: Complete settings of the pretraining but for the seed; None: finetuning starts from `init_from`.
        finetune: The same of the finetuning.
        teacher: Name of the variant that teaches it.
        against: Name of the variant that it is compared with; None for the baseline.
    """

    name: str
    changes: list[str]
    pretrain: Fields | None
    finetune: Fields
    teacher: str | None
    against: str | None


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """A list that was read and checked.

    Attributes:
        name: The file's name without its ending.
        title: Headline of the table.
        path: The file.
        data: What the data are made of.
        files: Where they are, or will be.
        baseline: Name of the variant that the others are compared with.
        variants: In the order of the list.
    """

    name: str
    title: str
    path: Path
    data: AblationData
    files: DataFiles
    baseline: str
    variants: list[Variant]

    def variant(self, name: str) -> Variant:
        """The variant of this name."""
        return next(variant for variant in self.variants if variant.name == name)


def read_ablation(path: Path, out: Path) -> Ablation:
    """Read and check a list; touches no data but the folders that it names.

    Args:
        path: The list.
        out: Where its data will be generated, if they are.

    Raises:
        UserError: An unknown key or variant, a wrong value, a missing file, settings that exclude each other; names
            the list, the variant and the setting.
    """
    content = read_recipe(path)
    check_recipe(content, ListSettings, path)
    for name in ("data", "baseline", "variants"):
        if name not in content:
            raise UserError("is not given", file=path, field=name, fix="see the lists in launch/recipes/ablations/")
    settings = ListSettings(**{**content, "data": _data(content["data"])})
    with _in_file(path, "data"):
        settings.data.validate()
        if settings.pretrain is not None and settings.data.generate is None and not settings.data.pretrain:
            raise UserError("is not given", field="pretrain", fix="name folders, or leave out the list's `pretrain`")
    files = data_files(settings.data, out)
    entries = _entries(settings, path)
    for name, entry in entries.items():
        _check_names(name, entry, entries, settings.baseline, path)
    bases = _Bases(path, files, settings)
    variants = [
        _variant(name, entry, settings.baseline, bases, files, is_generated=settings.data.generate is not None)
        for name, entry in entries.items()
    ]
    return Ablation(
        name=path.stem,
        title=settings.title or path.stem,
        path=path,
        data=settings.data,
        files=files,
        baseline=settings.baseline,
        variants=variants,
    )


def _data(content: Mapping[str, Any]) -> AblationData:
    generate = content.get("generate")
    return AblationData(**{**content, "generate": GeneratorConfig(**generate) if generate is not None else None})


def _entries(settings: ListSettings, path: Path) -> dict[str, VariantSettings]:
    if not isinstance(settings.variants, Mapping) or not settings.variants:
        raise UserError("must be `name: {what it changes}` lines", file=path, field="variants")
    entries = {}
    for name, content in settings.variants.items():
        content = {} if content is None else content
        with _in_file(path, f"variants.{name}"):
            if not isinstance(content, Mapping):
                raise UserError(f"{content!r:.60} is not a set of fields", fix="write {} for no change")
            check_recipe(content, VariantSettings, path)
        entries[str(name)] = VariantSettings(**content)
    return entries


def _check_names(
    name: str, entry: VariantSettings, entries: Mapping[str, VariantSettings], baseline: str, path: Path
) -> None:
    known = list(entries)
    asked = {"baseline": baseline, f"variants.{name}.teacher": entry.teacher, f"variants.{name}.against": entry.against}
    for where, other in asked.items():
        if other is not None and other not in entries:
            near = difflib.get_close_matches(other, known, n=1)
            fix = f"did you mean {near[0]!r}?" if near else f"they are {', '.join(known)}"
            raise UserError(f"there is no variant {other!r}", file=path, field=where, fix=fix)
    if entry.teacher is not None and (entry.teacher == name or entries[entry.teacher].teacher is not None):
        raise UserError(
            f"{entry.teacher!r} has a teacher itself", file=path, field=f"variants.{name}.teacher", fix="name another"
        )


class _Bases:
    """The list's base settings, laid under those of each variant."""

    def __init__(self, path: Path, files: DataFiles, settings: ListSettings) -> None:
        self.path = path
        self.has_pretraining = settings.pretrain is not None
        self._data: dict[str, Fields] = {"pretrain": files.pretrain_fields(), "finetune": files.finetune_fields()}
        self._bases = {
            room: self._with_recipes(getattr(settings, room) or {}, room, room) for room in ("pretrain", "finetune")
        }
        self._schemas: dict[str, type] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}
        self._resolved: dict[tuple[str, str], Any] = {}

    def merged(self, room: str, changes: Any, variant: str) -> Fields:
        """Data, base and the variant's changes as one, not yet resolved."""
        changes = self._with_recipes(changes, room, f"variants.{variant}.{room}")
        result = overlay(overlay(self._data[room], self._bases[room]), changes)
        reserved = (*_OF_A_CELL, "init_from") if room == "finetune" and self.has_pretraining else _OF_A_CELL
        for name in reserved:
            if name in result:
                raise UserError(
                    "is set for each cell", file=self.path, field=f"{room}.{name}", fix="leave it out of the list"
                )
        if room == "finetune" and self.has_pretraining:
            result["init_from"] = _PLACEHOLDER
        return result

    def resolve(self, room: str, content: Fields, variant: str) -> tuple[Any, Fields]:
        """The configuration, and the same as plain values with every default spelled out."""
        text = yaml.safe_dump(content, sort_keys=True, allow_unicode=True)
        if (room, text) not in self._resolved:
            with tempfile.TemporaryDirectory() as folder, _in_file(self.path, f"variants.{variant}.{room}"):
                recipe = Path(folder) / "recipe.yaml"
                recipe.write_text(text, encoding="utf-8")
                found = parse_settings(self._schemas[room], ["--config", str(recipe)], prog=room, description="")
            self._resolved[room, text] = found.config, yaml.safe_load(found.yaml)
        config, values = self._resolved[room, text]
        return config, dict(values)

    def _with_recipes(self, content: Any, room: str, where: str) -> Fields:
        """Recipes that a part names, its own fields over them."""
        with _in_file(self.path, where):
            if not isinstance(content, Mapping):
                raise UserError(f"{content!r:.60} is not a set of fields", fix=f"see `vidsim {room} --help`")
            own = {name: value for name, value in content.items() if name != RECIPES}
            schema = PretrainConfig if room == "pretrain" else FinetuneConfig
            check_recipe(own, schema, self.path)
            recipes = content.get(RECIPES, [])
            if not isinstance(recipes, list):
                raise UserError(f"{recipes!r:.60} is not a list", field=RECIPES, fix="write [recipe.yaml]")
        merged: Fields = {}
        for recipe in recipes:
            file = self.path.parent / str(recipe)
            part = read_recipe(file)
            check_recipe(part, schema, file)
            merged = overlay(merged, {name: value for name, value in part.items() if name not in _OF_A_CELL})
        if room == "finetune":
            merged.pop("init_from", None)
        return overlay(merged, own)


def _variant(
    name: str, entry: VariantSettings, baseline: str, bases: _Bases, files: DataFiles, *, is_generated: bool
) -> Variant:
    if not bases.has_pretraining and entry.pretrain != {}:
        raise UserError(
            "the list has no pretraining", file=bases.path, field=f"variants.{name}.pretrain", fix="add `pretrain: {}`"
        )
    pretrain = None
    if bases.has_pretraining:
        changes = {"loop": {"max_steps": 0}} if entry.pretrain is None else entry.pretrain
        config, pretrain = bases.resolve("pretrain", bases.merged("pretrain", changes, name), name)
        with _in_file(bases.path, f"variants.{name}.pretrain"):
            if is_generated and not files.exist():  # the files come later, all else is judged now
                config = replace(config, data=replace(config.data, tags=None, exclude=[]))
            config.validate()
    content = bases.merged("finetune", entry.finetune, name)
    if entry.teacher is not None:
        content = overlay(content, {"data": {"teacher": _PLACEHOLDER}})
    config, finetune = bases.resolve("finetune", content, name)
    with _in_file(bases.path, f"variants.{name}.finetune"):
        config = replace(config, init_from=".") if bases.has_pretraining else config
        config.validate()
    teacher = [f"teacher: {entry.teacher}"] if entry.teacher else []
    return Variant(
        name=name,
        changes=[*_lines("pretrain", entry.pretrain), *_lines("finetune", entry.finetune), *teacher],
        pretrain=pretrain,
        finetune=finetune,
        teacher=entry.teacher,
        against=entry.against or (baseline if name != baseline else None),
    )


def overlay(base: Mapping[str, Any], top: Mapping[str, Any]) -> Fields:
    """`top` over `base`, part by part; lists and plain values are replaced whole."""
    result = dict(base)
    for name, value in top.items():
        below = result.get(name)
        result[name] = overlay(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


def _lines(path: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _lines(f"{path}.{name}", inner)
    else:
        yield f"{path}: {'null' if value is None else value}"


@contextmanager
def _in_file(path: Path, where: str) -> Iterator[None]:
    """Say in which list and part of it a setting is wrong."""
    try:
        yield
    except UserError as error:
        inner = f"{where}.{error.field.lstrip('-')}" if error.field else where
        file = error.file if error.file and Path(error.file).suffix not in (".yaml", ".yml") else path
        raise UserError(error.message, file=file, record=error.record, field=inner, fix=error.fix) from error
