"""How idle OpenMP threads wait: a training step on two threads, alone and beside a process on every core."""

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from benchmarks import Row, benchmark, ratios
from segexp.records.process import WAIT_KEYS, usable_cores

CHILD = """
import sys
from segexp.records import process
process._others_run = lambda: False  # the other processes of this benchmark
if sys.argv[1] != "default":
    process.set_wait(sys.argv[1], 2)
import torch
torch.set_num_threads(2)
from benchmarks import seconds
from benchmarks.formats import step_of
step = step_of(sys.argv[3:], int(sys.argv[2]), "contiguous", "fp32")
for line in sys.stdin:
    print(sorted(seconds(step) for _ in range(3))[1], flush=True)
"""
"""A process of its own, because OpenMP reads its policy when torch is loaded: for each line, seconds of a step."""

TINY = ["model.encoder_depth=3", "model.decoder_channels=[16,8,8]", "backbone.name=tu-test_resnet"]


@contextmanager
def stepping(wait: str, quick: bool) -> Iterator["subprocess.Popen[str]"]:
    """A process that takes training steps on request. wait: a value of ``trainer.wait``, or "default" of OpenMP."""
    environment = {key: value for key, value in os.environ.items() if key not in (*WAIT_KEYS, "OMP_NUM_THREADS")}
    words = [wait, "32", *TINY] if quick else [wait, "128"]
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def all_cores_busy() -> Iterator[None]:
    """A process that computes on each core."""
    loop = [sys.executable, "-c", "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"]
    others = [subprocess.Popen(loop) for _ in range(usable_cores())]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def step_seconds(process: "subprocess.Popen[str]") -> float:
    assert process.stdin
    assert process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


@benchmark("Threads that wait: a training step on two threads at 128 px, alone and with every core taken by others")
def openmp(quick: bool) -> Iterable[Row]:
    """auto is what a run sets that begins alone, passive one that begins beside others."""
    waits = ("auto", "default") if quick else ("auto", "passive", "default")
    times: dict[str, list[float]] = {f"{wait}, {when}": [] for wait in waits for when in ("alone", "busy")}
    with ExitStack() as stack:
        processes = {wait: stack.enter_context(stepping(wait, quick)) for wait in waits}
        for process in processes.values():
            step_seconds(process)
        for _ in range(1 if quick else 9):
            for wait, process in processes.items():
                times[f"{wait}, alone"].append(step_seconds(process))
            with all_cores_busy():
                for wait, process in processes.items():
                    times[f"{wait}, busy"].append(step_seconds(process))
    alone = {name: taken for name, taken in times.items() if name.endswith("alone")}
    yield from ratios(alone, "default, alone", {"auto, alone": ("<=", 1.03)})
    for wait in waits:
        own = {name: taken for name, taken in times.items() if name.startswith(wait)}
        yield from ratios(own, f"{wait}, alone", {f"{wait}, busy": ("<=", 2.2)} if wait != "default" else None)
