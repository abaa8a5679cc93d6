"""Time two ways of doing the same thing in turn, and write down what came out and on what machine."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vidsim.common.files import atomic_path, write_json
from vidsim.engine.installed import version_of

Seconds = list[float]
_CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "asimd", "bf16")


def interleave(
    functions: Mapping[str, Callable[[int], object]],
    rounds: int,
    *,
    device: torch.device | None = None,
    warmup: int = 1,
    min_seconds: float = 0.0,
) -> dict[str, Seconds]:
    """Call every function once in every round, so that what slows the machine slows them all.

    Args:
        functions: Called with the number of the call (warm-up calls too, from 0). One that prepares something first
            returns the seconds of the rest as a float.
        rounds: Rounds that count.
        device: Waited for, so that the time is that of the work.
        warmup: Rounds before them that do not count.
        min_seconds: A function that is faster is called several times in a round, at least this long together.

    Returns:
        Seconds of one call, by function, one for each round.
    """
    times: dict[str, Seconds] = {name: [] for name in functions}
    calls = dict.fromkeys(functions, 0)
    repeats = dict.fromkeys(functions, 1)
    names = list(functions)
    for number in range(warmup + rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            seconds = _time(functions[name], calls[name], repeats[name], device)
            calls[name] += repeats[name]
            if number >= warmup:
                times[name].append(seconds)
            elif seconds < min_seconds:
                repeats[name] = int(min_seconds / max(seconds, 1e-9)) + 1
    return times


def _time(function: Callable[[int], object], start: int, repeats: int, device: torch.device | None) -> float:
    _wait(device)
    began = time.perf_counter()
    results = [function(number) for number in range(start, start + repeats)]
    _wait(device)
    own = [result for result in results if isinstance(result, float)]
    return sum(own) / repeats if own else (time.perf_counter() - began) / repeats


def _wait(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Ours beside the published way.

    Attributes:
        name: What was done.
        unit: What is counted: `videos/s`.
        amount: How many of them one call does.
        ours: Seconds a call, one for each round.
        yardstick: The same of the published way; its k-th round is that of our k-th.
        note: How the published way does it, if the name does not say so.
    """

    name: str
    unit: str
    amount: float
    ours: Seconds
    yardstick: Seconds
    note: str = ""

    @property
    def ratios(self) -> Seconds:
        """How many times faster we are, round by round."""
        return [theirs / ours for ours, theirs in zip(self.ours, self.yardstick, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """Everything measured, with medians."""
        return {
            **vars(self),
            "ours_median": self.amount / statistics.median(self.ours),
            "yardstick_median": self.amount / statistics.median(self.yardstick),
            "ratio_median": statistics.median(self.ratios),
            "ratio_min": min(self.ratios),
            "ratio_max": max(self.ratios),
        }


@dataclass(kw_only=True)
class Report:
    """What a run of the benchmark found.

    Attributes:
        machine: Facts about machine and software.
        settings: The options of the run.
        comparisons: Rows of the table.
        facts: Section -> name -> value, for what has no counterpart.
    """

    machine: dict[str, Any]
    settings: dict[str, Any]
    comparisons: list[Comparison] = field(default_factory=list)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write FILE.json and FILE.md."""
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [comparison.to_json() for comparison in self.comparisons]
        content = {"machine": self.machine, "settings": self.settings, "comparisons": rows, "facts": self.facts}
        write_json(path.with_suffix(".json"), content)
        with atomic_path(path.with_suffix(".md")) as temporary:
            temporary.write_text(self.markdown(), encoding="utf-8")

    def markdown(self) -> str:
        """The tables, ready to be pasted into docs/performance.md."""
        lines = [machine_line(self.machine), ""]
        if self.comparisons:
            rows = [_cells(comparison) for comparison in self.comparisons]
            lines += table(["what", "ours", "published way", "times faster", "spread"], rows)
            notes = [f"- {each.name}: {each.note}" for each in self.comparisons if each.note]
            lines += ["", "Times faster: median of the rounds; spread: smallest to largest.", *notes, ""]
        for section, facts in self.facts.items():
            lines += [f"{section}:", ""]
            lines += [f"- {name}: {_shown(value)}" for name, value in facts.items()]
            lines += [""]
        return "\n".join(lines)


def _cells(comparison: Comparison) -> list[str]:
    found = comparison.to_json()
    unit, count = comparison.unit, len(comparison.ours)
    if unit == "s":  # the time itself is the figure
        ours, theirs = (f"{statistics.median(each):.3g} s" for each in (comparison.ours, comparison.yardstick))
    else:
        ours, theirs = (f"{_shown(found[key])} {unit}" for key in ("ours_median", "yardstick_median"))
    spread = f"{found['ratio_min']:.3g} to {found['ratio_max']:.3g}" if count > 1 else "one round"
    return [comparison.name, ours, theirs, f"**{found['ratio_median']:.3g}**", spread]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; all columns but the first are aligned to the right."""
    rules = ["---", *(["---:"] * (len(header) - 1))]
    return [f"| {' | '.join(row)} |" for row in (header, rules, *rows)]


def machine_facts(device: torch.device) -> dict[str, Any]:
    """Processor, cores, threads, GPU, versions and the load when asked."""
    model, flags = platform.machine(), set[str]()
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else []:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            model = value.strip()
        elif name.strip() in ("flags", "Features"):
            flags = set(value.split())
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "flags": " ".join(flag for flag in _CPU_FLAGS if flag in flags),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "python": platform.python_version(),
        **{package: version_of(package) for package in ("torch", "transformers", "scikit-learn", "vidsim")},
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def machine_line(machine: Mapping[str, Any]) -> str:
    """One line about the machine."""
    where = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores ({machine['flags']})"
    return (
        f"{where}; {machine['threads']} threads; torch {machine['torch']}; load at the start {machine['load_at_start']}"
    )


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products are done in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    flags = machine_facts(device)["flags"].split()
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))


def matmul_peak(device: torch.device, dtype: torch.dtype, *, seconds: float = 0.5) -> float:
    """FLOP/s of the fastest of several matrix products, each the best of its repetitions."""
    best = 0.0
    largest = 8192 if device.type == "cuda" else 4096
    shapes = [(n, n, n) for n in (1024, 2048, 4096, 8192) if n <= largest] + [(2048, 768, 3072), (1152, 3072, 768)]
    for rows, inner, columns in shapes:
        left = torch.randn(rows, inner, device=device).to(dtype)
        right = torch.randn(inner, columns, device=device).to(dtype)
        spent, count = 0.0, 0
        while spent < seconds or count < 3:
            took = _time(lambda number, a=left, b=right: a @ b, 0, 1, device)  # type: ignore[misc]
            best = max(best, 2.0 * rows * inner * columns / took)
            spent, count = spent + took, count + 1
    return best


def peak_rss() -> int:
    """Most bytes that this process ever had in memory, mapped files included."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):  # `ru_maxrss` would also remember the process that started this one
            return int(line.split()[1]) * 1024
    return 0


def memory_of_tree() -> dict[str, int]:
    """Bytes of this process and those that it started, pages that several share counted once.

    `private` is what nothing else can give back: the heap and memory shared between these processes (batches on their
    way). `mapped` are pages of files: they stay in the page cache only while there is room.
    """
    sizes = {"private": 0, "mapped": 0}
    waiting = [os.getpid()]
    while waiting:
        process = Path(f"/proc/{waiting.pop()}")
        try:
            for task in (process / "task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
            lines = (process / "smaps_rollup").read_text().splitlines()[1:]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        found = {name.rstrip(":"): int(value) * 1024 for name, value, *_ in map(str.split, lines)}
        sizes["private"] += found["Pss_Anon"] + found["Pss_Shmem"]
        sizes["mapped"] += found["Pss_File"]
    return sizes
