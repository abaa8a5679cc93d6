"""Every shipped recipe is read by the real settings; the published ones hold the published numbers.

The numbers are those of arXiv 2111.01677 and of its authors' code (the differences are told in the recipes).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from vidsim.engine.optimizer import parameter_groups
from vidsim.engine.settings import Settings, parse_settings
from vidsim.finetune.config import FinetuneConfig
from vidsim.finetune.cowatch_config import CowatchConfig
from vidsim.finetune.tasks.similarity import SimilarityModule
from vidsim.modeling.build import build_encoder
from vidsim.modeling.config import max_text_tokens
from vidsim.modeling.parameters import HEADS, layer_numbers
from vidsim.pretrain.config import PretrainConfig
from vidsim.pretrain.module import PretrainModule

RECIPES = Path(__file__).resolve().parents[3] / "launch" / "recipes"
JOBS = ("job1", "job2", "job3", "job4", "job5", "job6")
OVERLAYS = {
    "demo_text_cls": ["demo"],
    "demo_attention": ["demo"],
    "scaled_down": list(JOBS),
}
ALONE = [path.stem for path in sorted((RECIPES / "pretrain").glob("*.yaml")) if path.stem not in OVERLAYS]
PRETRAIN = [(name,) for name in ALONE] + [(base, overlay) for overlay, bases in OVERLAYS.items() for base in bases]
COWATCH = [("cowatch",), ("cowatch_published",), ("cowatch_encoder",)]
FINETUNE = [("demo",), ("published",), ("similarity",), ("published", "scaled_down"), ("similarity", "scaled_down")]


@cache
def read(room: str, *names: str) -> Settings:
    schema: type = PretrainConfig if room == "pretrain" else FinetuneConfig
    if names in COWATCH:
        schema = CowatchConfig
    arguments = [part for name in names for part in ("--config", str(RECIPES / room / f"{name}.yaml"))]
    return parse_settings(schema, arguments, prog=room, description="")


def job(name: str, *overlays: str) -> PretrainConfig:
    config: PretrainConfig = read("pretrain", name, *overlays).config
    return config


def test_every_recipe_is_tested() -> None:
    found = {(path.parent.name, path.stem) for path in RECIPES.rglob("*.yaml") if path.parent.name != "ablations"}
    tested = {("pretrain", name) for names in PRETRAIN for name in names}
    tested |= {("finetune", name) for names in FINETUNE + COWATCH for name in names}
    assert found == tested
    assert set(JOBS) < set(ALONE)


@pytest.mark.parametrize(
    ("room", "names"),
    [*product(["pretrain"], PRETRAIN), *product(["finetune"], FINETUNE + COWATCH)],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_a_recipe_and_what_a_run_stores_of_it_are_the_same(room: str, names: tuple[str, ...], tmp_path: Path) -> None:
    settings = read(room, *names)
    stored = tmp_path / "config.yaml"
    stored.write_text(settings.yaml, encoding="utf-8")
    again = parse_settings(type(settings.config), ["--config", str(stored)], prog=room, description="")
    assert again.config == settings.config
    assert again.yaml == settings.yaml


@pytest.mark.parametrize("names", PRETRAIN, ids="+".join)
def test_pretraining_recipes_are_consistent(names: tuple[str, ...]) -> None:
    """All that `validate` checks but the files, which are the user's."""
    config = job(*names)
    data = replace(config.data, tags=None, exclude=[])
    replace(config, data=data, model=replace(config.model, init_from=None)).validate()


@pytest.mark.parametrize("names", FINETUNE, ids="+".join)
def test_finetuning_recipes_are_consistent(names: tuple[str, ...], tmp_path: Path) -> None:
    config = read("finetune", *names).config
    replace(config, init_from=str(tmp_path)).validate()


@pytest.mark.parametrize("names", COWATCH, ids="+".join)
def test_cowatch_recipes_are_consistent(names: tuple[str, ...]) -> None:
    read("finetune", *names).config.validate()


def test_published_cowatch() -> None:
    """Lee et al. 2018, §3.2.2 and §4.1.1."""
    config: CowatchConfig = read("finetune", "cowatch_published").config
    task = config.task
    assert (task.fusion, task.hidden, task.embedding_dim) == ("late", [4000], 256)
    assert (task.loss, task.mining, task.margin, config.loop.micro_batch_size) == ("hinge", "semihard", 0.1, 7200)


class Job(NamedTuple):
    """What differs between the six published jobs."""

    layout: str
    title_tokens: int  # of 36 text ids: two [SEP] with the leading [CLS], one without
    vtc_input: str
    pooling: str
    mlm_probability: float
    mfm_probability: float | None  # nine tenths of the setting: the kept tenth carries no loss in the code
    seed: int
    epochs: list[float]


PUBLISHED = {
    "job1": Job("cls_first", 33, "cls", "mean_unmasked", 0.15, 0.135, 2021, [40]),
    "job2": Job("text_cls", 34, "embedding", "mean_unmasked", 0.15, 0.135, 2021, [40]),
    "job3": Job("text_cls", 34, "embedding", "mean_unmasked", 0.15, None, 2021, [40]),
    "job4": Job("cls_first", 33, "cls", "attention_unmasked", 0.15, 0.135, 2021, [40, 5]),
    "job5": Job("cls_first", 33, "cls", "attention_unmasked", 0.15, 0.135, 123456, [32]),
    "job6": Job("cls_first", 33, "cls", "mean_unmasked", 0.25, 0.225, 2021, [24]),
}
POINT, PAIR, TEST_A, TEST_B = (f"corpora/aiac/{name}" for name in ("pointwise", "pairwise", "test_a", "test_b"))
DATA: dict[str, list[tuple[list[str], str]]] = {
    **{name: [([POINT, PAIR], "together")] for name in ("job1", "job2", "job3", "job6")},
    "job4": [([POINT, PAIR], "together"), ([PAIR], "together")],
    "job5": [([POINT, PAIR, TEST_A, TEST_B], "sequential")],
}


@pytest.mark.parametrize("name", JOBS)
def test_published_job(name: str) -> None:
    config, expected = job(name), PUBLISHED[name]
    objectives, masking = config.objectives, config.masking
    assert (config.model.layout, config.model.pooling) == (expected.layout, expected.pooling)
    assert config.model.max_title_tokens == expected.title_tokens
    assert objectives.vtc is not None
    assert objectives.mlm is not None
    assert (objectives.vtc.input, objectives.vtc.loss) == (expected.vtc_input, "bce")
    assert objectives.vtc.weight == pytest.approx(416.667, abs=1e-3)
    assert objectives.mlm.weight == pytest.approx(0.26667, abs=1e-5)
    assert (objectives.vtm, objectives.contrastive) == (None, None)
    assert masking.mlm_probability == expected.mlm_probability
    assert (masking.mlm_mask_fraction, masking.mlm_random_fraction) == (0.8, 0.1)
    if expected.mfm_probability is None:
        assert objectives.mfm is None
    else:
        assert objectives.mfm is not None
        assert objectives.mfm.weight == pytest.approx(0.11111, abs=1e-5)
        assert (objectives.mfm.normalize, objectives.mfm.temperature) == (False, 1.0)
        assert (masking.mfm_probability, masking.mfm_zero_fraction) == (expected.mfm_probability, 1.0)
    assert config.seed == expected.seed
    assert [stage.num_epochs for stage in config.data.stages] == expected.epochs
    assert [(stage.data, stage.order) for stage in config.data.stages] == DATA[name]


@pytest.mark.parametrize("name", JOBS)
def test_what_all_published_jobs_share(name: str) -> None:
    config = job(name)
    model, optimizer = config.model, config.optimizer
    assert (optimizer.learning_rate, optimizer.head_learning_rate) == (5e-5, 5e-4)
    assert (optimizer.weight_decay, optimizer.eps, optimizer.betas) == (0.01, 1e-6, (0.9, 0.999))
    assert optimizer.layer_decay == 1.0
    assert (config.schedule.kind, config.schedule.warmup_fraction, config.schedule.min_ratio) == ("cosine", 0.06, 0.0)
    assert config.loop.max_grad_norm is None
    assert config.loop.micro_batch_size * config.loop.gradient_accumulation_steps == 128
    assert (config.balance.mode, config.precision, config.data.num_tags) == ("fixed", "fp32", 10_000)
    assert (model.embedding_dim, model.max_frames, model.max_asr_tokens, model.padding) == (256, 32, 0, "max_length")
    num_positions = model.max_frames + max_text_tokens(model.layout, model.max_title_tokens, model.max_asr_tokens)
    assert num_positions == 68
    assert config.data.exclude == []  # it pretrains on the videos of its validation pairs, as published
    assert (config.data.epoch_scale, config.loop.max_steps) == (1.0, None)


def test_published_finetuning() -> None:
    config: FinetuneConfig = read("finetune", "published").config
    optimizer, task, data = config.optimizer, config.task, config.data
    assert (task.loss, task.label) == ("mse", "rank")
    assert (task.tag_weight, task.kl_weight, task.r_drop_weight, task.distill_weight) == (0, 0, 0, 0)
    assert (task.num_dropout_samples, config.ema, config.fgm) == (1, None, None)
    assert (config.num_epochs, config.loop.micro_batch_size, config.seed) == (10, 32, 2021)
    assert config.loop.gradient_accumulation_steps == 1
    assert (optimizer.learning_rate, optimizer.head_learning_rate) == (1e-5, 5e-5)
    assert (optimizer.weight_decay, optimizer.eps, optimizer.layer_decay) == (0.01, 1e-6, 1.0)
    assert (config.schedule.kind, config.schedule.warmup_fraction) == ("cosine", 0.06)
    assert (config.loop.max_grad_norm, config.precision) == (None, "fp32")
    assert (data.split, data.fold, data.num_folds, data.validation) == ("pair_or", 0, 5, None)
    assert config.projection == "random"
    assert config.pooling is None


def rates(module: Any, optimizer: Any) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter, by its name."""
    layers, num_layers = layer_numbers(module, module.encoder)
    heads = tuple(optimizer.head_parameters or HEADS)
    groups = parameter_groups(module, optimizer, lambda name: name.startswith(heads), layers.get, num_layers)
    return {name: (group["base_lr"], group["weight_decay"]) for group in groups for name in group["names"]}


def small(config: PretrainConfig, small_data: Any) -> PretrainModule:
    """The module of a recipe at the smallest size."""
    model = replace(config.model, init_from=None, hidden_size=4, num_layers=1, num_heads=1, embedding_dim=3)
    encoder, _ = build_encoder(model, small_data.tokenizer(), {"frames": 2})
    return PretrainModule(encoder, config.objectives, num_tags=5, seed=0)


@pytest.mark.parametrize("name", JOBS)
def test_learning_rates_are_grouped_as_in_the_published_code(name: str, small_data: Any) -> None:
    """It groups by substrings: all that is called `roberta`, so MLM and MFM heads and frame projection, is backbone."""
    config = job(name)
    published = {
        "encoder.text.": 5e-5,
        "encoder.streams.frames.": 5e-5,  # roberta.bert.video_fc, roberta.bert.video_embeddings
        "objectives.mlm.": 5e-5,  # roberta.cls
        "objectives.mfm.": 5e-5,  # roberta_mvm_lm_header
        "objectives.vtc.": 5e-4,  # newfc_tag
        "encoder.embedding_head.": 5e-4,  # newfc_hidden
        "encoder.attention_pooling.": 5e-4,  # newemb_att
    }
    found = rates(small(config, small_data), config.optimizer)
    seen = set()
    for parameter, (rate, decay) in found.items():
        (prefix,) = [prefix for prefix in published if parameter.startswith(prefix)]
        seen.add(prefix)
        assert rate == published[prefix], parameter
        is_plain = parameter.endswith("bias") or "norm" in parameter.lower()
        assert decay == (0.0 if is_plain else 0.01), parameter
    absent = {"encoder.attention_pooling."} if "mean" in config.model.pooling else set()
    absent |= {"objectives.mfm."} if name == "job3" else set()
    assert seen == set(published) - absent


def test_finetuning_rates_are_grouped_as_in_the_published_code(small_data: Any) -> None:
    config: FinetuneConfig = read("finetune", "published").config
    encoder = small(job("job4"), small_data).encoder
    module = SimilarityModule(encoder, config.task, num_tags=0, seed=0)
    for parameter, (rate, _) in rates(module, config.optimizer).items():
        is_head = parameter.startswith(("encoder.embedding_head.", "encoder.attention_pooling."))
        assert rate == (5e-5 if is_head else 1e-5), parameter


def test_our_own_recipes_train_every_head_at_the_heads_rate(small_data: Any) -> None:
    config = job("base")
    for parameter, (rate, _) in rates(small(config, small_data), config.optimizer).items():
        is_head = parameter.startswith(("objectives.", "encoder.embedding_head."))
        assert rate == (5e-4 if is_head else 5e-5), parameter


@pytest.mark.parametrize("name", ["base", "large", "demo"])
def test_our_own_recipes_leak_nothing(name: str) -> None:
    """No video of a validation or test pair is pretrained on, and no padding enters the embedding."""
    config = job(name)
    assert [Path(path).name for path in config.data.exclude] == ["holdout_ids.txt"]
    assert config.probe is not None
    assert Path(config.probe.pairs).parent == Path(config.data.exclude[0]).parent
    assert config.model.pooling == "mean"
    assert config.model.padding == "longest"


@pytest.mark.parametrize("name", ["similarity", "demo"])
def test_our_own_finetuning_validates_on_other_videos(name: str) -> None:
    data = read("finetune", name).config.data
    assert data.validation is not None
    assert Path(data.validation).parent == Path(data.pairs).parent
    assert "train" in Path(data.pairs).name


@pytest.mark.parametrize("name", JOBS)
def test_scaled_down_keeps_what_makes_a_job(name: str) -> None:
    full, scaled = job(name), job(name, "scaled_down")
    assert scaled.model == replace(full.model, init_from=None, hidden_size=128, num_layers=2, num_heads=4)
    assert (scaled.objectives, scaled.masking, scaled.seed) == (full.objectives, full.masking, full.seed)
    assert (scaled.data.stages, scaled.data.epoch_scale) == (full.data.stages, 0.1)
    changed = replace(full.optimizer, learning_rate=5e-4, head_learning_rate=1e-3)
    assert scaled.optimizer == changed
    assert scaled.loop.max_grad_norm is None
    assert (scaled.loop.num_workers, scaled.loop.eval_every_steps) == (0, None)


@pytest.mark.parametrize("overlay", ["demo_text_cls", "demo_attention"])
def test_demo_models_differ_in_what_they_name(overlay: str) -> None:
    base, other = job("demo"), job("demo", overlay)
    assert other.data == base.data
    assert other.optimizer == base.optimizer
    assert other.output_dir != base.output_dir
    assert other.seed != base.seed
    assert other.objectives.mlm == base.objectives.mlm
    if overlay == "demo_text_cls":
        assert other.model == replace(base.model, layout="text_cls")
        assert other.objectives.vtc == replace(base.objectives.vtc, input="embedding")  # type: ignore[type-var]
    else:
        assert other.model == replace(base.model, pooling="attention")
        assert other.masking == replace(base.masking, mlm_probability=0.25, mfm_probability=0.25)
