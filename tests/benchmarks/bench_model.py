"""The benchmark's items with a model: training step and inference."""

from __future__ import annotations

import contextlib
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.benchmarks.flops import encoder_flops, num_tokens, step_flops
from tests.benchmarks.measure import Comparison, Report, has_fast_bf16, interleave, matmul_peak
from tests.benchmarks.workload import (
    NUM_TAGS,
    Sizes,
    make_batches,
    make_collator,
    make_module,
    make_processor,
    make_tokenizer,
    make_trainer,
    write_videos,
)
from tests.benchmarks.yardstick import (
    PaddedBatch,
    Yardstick,
    make_optimizer,
    mask_on_host,
    pad_batch,
    total,
)
from vidsim.data.collators import VideoRows
from vidsim.data.loading import step_batches
from vidsim.finetune.embed import (
    EmbedCollator,
    SortedWindows,
    batch_vectors,
    estimated_lengths,
    prepare_for_inference,
)

LARGEST_DIFFERENCE = 1e-4  # relative, between the total losses for the same masks, in fp32
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "tf32": torch.float32}


@contextlib.contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Products in fp32, in TF32 (on CUDA), or bf16 autocast."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def precisions(device: torch.device) -> list[tuple[str, str]]:
    """(ours, the yardstick's) precisions to compare on a device."""
    pairs = [("fp32", "fp32")]
    if has_fast_bf16(device):
        pairs += [("bf16", "fp32")]
    if device.type == "cuda":
        pairs += [("bf16", "tf32"), ("bf16", "bf16")]
    return pairs


def compare_losses(sizes: Sizes, tokenizer: Any, batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Total losses of both ways for the same masks and weights, without dropout.

    Raises:
        RuntimeError: They differ.
    """
    module = make_module(sizes, tokenizer, dropout=0.0).to(device)
    yardstick = Yardstick(module)
    with torch.no_grad(), arithmetic("fp32", device):
        (window,) = module.windows([batch], 0)
        losses = module(batch, window)
        ours = sum(module.weights[name] * loss.item() for name, loss in losses.items())
        theirs = total(yardstick(pad_batch(batch, NUM_TAGS).to(device))).item()
    difference = abs(ours - theirs) / abs(theirs)
    if difference > LARGEST_DIFFERENCE:
        raise RuntimeError(f"the losses differ for the same masks: {ours} and {theirs}")
    return {"total loss, ours": f"{ours:.6f}", "published": f"{theirs:.6f}", "relative difference": f"{difference:.1e}"}


class Steps:
    """Training steps of both ways over the same videos.

    Args:
        sizes: Model and batch.
        tokenizer: Of the batches.
        ours: Batches of our collator, on the device.
        theirs: The same videos at the fixed lengths, not masked, on the device.
        device: Where it runs.
    """

    def __init__(
        self, sizes: Sizes, tokenizer: Any, ours: list[dict[str, Any]], theirs: list[PaddedBatch], device: torch.device
    ) -> None:
        """Build one module for each of our precisions and one yardstick."""
        self.sizes, self.tokenizer, self.ours, self.theirs, self.device = sizes, tokenizer, ours, theirs, device
        module = make_module(sizes, tokenizer)
        self.yardstick = Yardstick(module).to(device).train()
        self.optimizer = make_optimizer(self.yardstick)
        self.masking_seconds: list[float] = []
        wanted = dict.fromkeys(precision for precision, _ in precisions(device))
        self.trainers = {precision: make_trainer(copy.deepcopy(module), precision) for precision in wanted}

    def functions(self) -> dict[str, Callable[[int], None]]:
        """`ours <precision>` and `published <precision>`: one step over batch `number`."""

        def step_of_ours(precision: str) -> Callable[[int], None]:
            def step(number: int) -> None:
                with arithmetic("fp32", self.device):  # autocast comes from the accelerator
                    self.trainers[precision].step([self.ours[number % len(self.ours)]], 1.0)

            return step

        def step_of_theirs(precision: str) -> Callable[[int], None]:
            return lambda number: self._published_step(number, precision)

        found = {f"ours {precision}": step_of_ours(precision) for precision in self.trainers}
        wanted = dict.fromkeys(precision for _, precision in precisions(self.device))
        return found | {f"published {precision}": step_of_theirs(precision) for precision in wanted}

    def _published_step(self, number: int, precision: str) -> None:
        began = time.perf_counter()
        tokenizer = self.tokenizer
        batch = mask_on_host(
            self.theirs[number % len(self.theirs)],
            set(tokenizer.all_special_ids),
            tokenizer.mask_token_id,
            len(tokenizer),
        )
        self.masking_seconds.append(time.perf_counter() - began)
        with arithmetic(precision, self.device):
            loss = total(self.yardstick(batch))
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)


def training(report: Report, work: Path, sizes: Sizes, device: torch.device, *, rounds: int, num_batches: int) -> None:
    """Steps of forward, backward and optimizer."""
    tokenizer = make_tokenizer(work / "tokenizer")
    processor = make_processor(sizes, tokenizer)
    videos = write_videos(work / "training", num_batches * sizes.batch_size, sizes.frame_dim, sizes.lengths)
    batches = make_batches(videos, make_collator(processor), sizes.batch_size, device)
    plain = make_batches(videos, make_collator(processor, masked=False), sizes.batch_size, torch.device("cpu"))
    padded = [pad_batch(batch, NUM_TAGS).to(device) for batch in plain]
    report.facts["same masks, fp32"] = compare_losses(sizes, tokenizer, batches[0], device)

    steps = Steps(sizes, tokenizer, batches, padded, device)
    encoder: Any = steps.trainers["fp32"].module.encoder
    flops = statistics.mean(step_flops(encoder, batch, NUM_TAGS) for batch in batches)
    warmup = 2 if device.type == "cuda" else 1  # the first call on a GPU says little about how long one takes
    times = interleave(steps.functions(), rounds, device=device, warmup=warmup, min_seconds=0.2)
    for ours, theirs in precisions(device):
        report.comparisons.append(
            Comparison(
                name=_name("training step", ours, theirs),
                unit="videos/s",
                amount=sizes.batch_size,
                ours=times[f"ours {ours}"],
                yardstick=times[f"published {theirs}"],
                note="68 positions a video, see tests/benchmarks/yardstick.py" if ours == "fp32" else "",
            )
        )
    tokens = statistics.mean(num_tokens(batch) for batch in batches)
    facts: dict[str, Any] = {
        "real tokens a video": tokens / sizes.batch_size,
        "positions a video in the published way": 68,
        "model GFLOP a video (real tokens, forward and backward)": flops / sizes.batch_size / 1e9,
        "drawing masks on the host, share of the published fp32 step": statistics.median(steps.masking_seconds)
        / statistics.median(times["published fp32"]),
    }
    for precision in steps.trainers:
        seconds = statistics.median(times[f"ours {precision}"])
        facts |= _speeds(precision, device, seconds, flops, sizes.batch_size, tokens)
    if device.type == "cuda":
        facts["peak GPU memory of all variants together, bytes"] = torch.cuda.max_memory_allocated(device)
    report.facts["training step"] = facts


def _speeds(
    precision: str, device: torch.device, seconds: float, flops: float, num_videos: int, tokens: float
) -> dict[str, Any]:
    """Speed of ours, and its share of the peak measured here and now."""
    peak = matmul_peak(device, _DTYPES[precision])
    return {
        f"{precision}: tokens/s": tokens / seconds,
        f"{precision}: videos/s": num_videos / seconds,
        f"{precision}: measured matmul peak, GFLOP/s": peak / 1e9,
        f"{precision}: MFU": f"{flops / seconds / peak:.1%}",
    }


def _name(what: str, ours: str, theirs: str) -> str:
    return f"{what}, {ours}" if ours == theirs else f"{what}, {ours} (published: {theirs})"


def inference(report: Report, work: Path, sizes: Sizes, device: torch.device, *, rounds: int, num_batches: int) -> None:
    """Embeddings of videos that are already tensors; ours in the batches that `vidsim embed` forms."""
    tokenizer = make_tokenizer(work / "tokenizer")
    processor = make_processor(sizes, tokenizer)
    num_videos = num_batches * sizes.batch_size
    videos = write_videos(work / "inference", num_videos, sizes.frame_dim, sizes.lengths)
    sampler = SortedWindows(np.arange(num_videos), estimated_lengths(videos, processor), batch_size=sizes.batch_size)
    batches = list(step_batches(VideoRows(videos), sampler, EmbedCollator(processor), num_workers=0))
    plain = make_batches(videos, make_collator(processor, masked=False), sizes.batch_size, torch.device("cpu"))
    padded = [pad_batch(batch, NUM_TAGS) for batch in plain]
    module = make_module(sizes, tokenizer)
    yardstick = Yardstick(module).to(device).eval()

    def ours(precision: str) -> Callable[[int], None]:
        encoder = prepare_for_inference(copy.deepcopy(module.encoder), device, precision)

        def run(number: int) -> None:
            with torch.inference_mode():
                for batch in batches:
                    batch_vectors(encoder, batch, precision).cpu().numpy()

        return run

    def published(precision: str) -> Callable[[int], None]:
        def run(number: int) -> None:
            with torch.no_grad(), arithmetic(precision, device):
                for batch in padded:
                    yardstick.embed(batch.to(device)).cpu().tolist()

        return run

    pairs = precisions(device)
    functions = {f"ours {precision}": ours(precision) for precision in dict.fromkeys(first for first, _ in pairs)}
    functions |= {f"published {each}": published(each) for each in dict.fromkeys(second for _, second in pairs)}
    times = interleave(functions, rounds, device=device, warmup=2, min_seconds=0.2)
    for first, second in pairs:
        report.comparisons.append(
            Comparison(
                name=_name("inference", first, second),
                unit="videos/s",
                amount=num_videos,
                ours=times[f"ours {first}"],
                yardstick=times[f"published {second}"],
                note=f"batches of {sizes.batch_size}, ours sorted by length" if first == "fp32" else "",
            )
        )
    flops = sum(encoder_flops(module.encoder, batch)[0] for batch in plain)
    tokens = sum(num_tokens(batch) for batch in plain)
    facts: dict[str, Any] = {"model GFLOP a video": flops / num_videos / 1e9}
    for precision in dict.fromkeys(first for first, _ in pairs):
        seconds = statistics.median(times[f"ours {precision}"])
        facts |= _speeds(precision, device, seconds, flops, num_videos, tokens)
    report.facts["inference"] = facts
