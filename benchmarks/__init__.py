"""Measurements of speed and memory, as ratios of two things that are measured in turns in one process.

    python -m benchmarks                       # all, as a table
    python -m benchmarks head hidden --json results.json
    python -m benchmarks --page                # docs/performance.md from benchmarks/results.json

A machine that is busy slows both sides of a ratio; its spread shows by how much. A benchmark is one decorated function
in a module of this package.
"""

import importlib
import pkgutil
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from segexp.records.process import usable_cores


@dataclass(frozen=True)
class Row:
    """One figure. value: median over the rounds, low and high: its quartiles (all equal where nothing is timed).

    unit: "x" for a ratio to ``baseline``, else what is counted. bound: what is asked of the value, as ("<=", 1.03) or
    (">=", 0.97); None where it is only reported.
    """

    case: str
    value: float
    low: float
    high: float
    unit: str = "x"
    baseline: str = ""
    bound: tuple[str, float] | None = None
    rounds: int = 1

    @property
    def held(self) -> bool | None:
        """Whether the value is within its bound; None without one."""
        if self.bound is None:
            return None
        sign, limit = self.bound
        return self.value <= limit if sign == "<=" else self.value >= limit


@dataclass(frozen=True)
class Benchmark:
    """One entry. title: what is measured, for a heading. function: quick -> rows; quick takes seconds, for tests."""

    name: str
    title: str
    function: Callable[[bool], Iterable[Row]]


BENCHMARKS: dict[str, Benchmark] = {}


def benchmark(title: str) -> Callable[[Callable[[bool], Iterable[Row]]], Callable[[bool], Iterable[Row]]]:
    """Decorator: register the function under its own name. Raises ValueError for a name that is taken."""

    def register(function: Callable[[bool], Iterable[Row]]) -> Callable[[bool], Iterable[Row]]:
        name = function.__name__
        if name in BENCHMARKS:
            raise ValueError(f"two benchmarks are called {name}")
        BENCHMARKS[name] = Benchmark(name, title, function)
        return function

    return register


def load() -> dict[str, Benchmark]:
    """All benchmarks, in the order of their modules' names."""
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
        if module != "__main__":
            importlib.import_module(f"{__name__}.{module}")
    return dict(sorted(BENCHMARKS.items(), key=lambda one: one[1].function.__module__))  # whichever came first


def seconds(call: Callable[[], Any], device: str = "cpu") -> float:
    """Seconds of one call, with what it leaves running on a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def seconds_on_card(call: Callable[[], Any], device: str = "cuda") -> float:
    """Seconds that the kernels of a call take on a GPU, without those in which it waits for the host."""
    torch.cuda.synchronize()
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(50_000_000)  # clock cycles, some 25 ms, in which the host starts all of them
    started.record()
    call()
    ended.record()
    torch.cuda.synchronize()
    return started.elapsed_time(ended) / 1000


def in_turns(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    device: str = "cpu",
    warm_up: int = 1,
    timer: Callable[[Callable[[], Any], str], float] = seconds,
) -> dict[str, list[float]]:
    """Seconds of each call in each round; in every round all are timed once, in another order."""
    for _ in range(warm_up):
        for call in calls.values():
            call()
    order = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name in order.sample(list(calls), len(calls)):
            times[name].append(timer(calls[name], device))
    return times


def ratios(
    times: Mapping[str, Sequence[float]],
    baseline: str,
    bounds: Mapping[str, tuple[str, float]] | None = None,
    *,
    rate: bool = False,
) -> list[Row]:
    """A row for each call but the baseline: the ratio of its time to the baseline's of the same round.

    rate: the ratio of their speeds instead.
    """
    rows = []
    for name, taken in times.items():
        if name == baseline:
            continue
        pairs = zip(taken, times[baseline], strict=True)
        each = sorted((base / mine if rate else mine / base) for mine, base in pairs)
        low, middle, high = statistics.quantiles(each, n=4, method="inclusive") if len(each) > 1 else each * 3
        rows.append(Row(name, middle, low, high, "x", baseline, (bounds or {}).get(name), len(each)))
    return rows


def counted(case: str, value: float, unit: str, bound: tuple[str, float] | None = None) -> Row:
    """A row of something that has no spread: bytes, images."""
    return Row(case, value, value, value, unit, bound=bound)


def machine() -> dict[str, Any]:
    """What the figures were measured on; no name of a host."""
    name = platform.processor() or platform.machine()
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": name,
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
