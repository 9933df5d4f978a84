"""What a run sets for its process: how idle OpenMP threads wait, and that freed memory is kept. Training steps on two
threads."""

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from benchmarks import Row, benchmark, counted, ratios
from segexp.records.process import MALLOPT, WAIT_KEYS, usable_cores

CHILD = """
import resource, sys
from segexp.records import process
process._others_run = lambda: False  # the other processes of this benchmark
if sys.argv[1] != "default":
    process.set_wait(sys.argv[1], 2)
if sys.argv[2] == "kept":
    process.keep_freed_memory()
import torch
torch.set_num_threads(2)
from benchmarks import seconds
from benchmarks.formats import step_of
step = step_of(sys.argv[4:], int(sys.argv[3]), "contiguous", "fp32")
for line in sys.stdin:
    mebibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(sorted(seconds(step) for _ in range(3))[1], mebibytes, flush=True)
"""
"""A process of its own, because OpenMP reads its policy when torch is loaded: for each line, seconds of a step and the
peak of its memory."""

TINY = ["model.encoder_depth=3", "model.decoder_channels=[16,8,8]", "backbone.name=tu-test_resnet"]


@contextmanager
def stepping(wait: str, memory: str, quick: bool, side: int = 128) -> Iterator["subprocess.Popen[str]"]:
    """A process that takes training steps on request. wait: a value of ``trainer.wait``, or "default" of OpenMP.
    memory: "kept", or "freed" as the system's allocator does it."""
    ours = (*WAIT_KEYS, *MALLOPT, "GLIBC_TUNABLES", "OMP_NUM_THREADS")
    environment = {key: value for key, value in os.environ.items() if key not in ours}
    words = [wait, memory, *(["32", *TINY] if quick else [str(side)])]
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


def measured(process: "subprocess.Popen[str]") -> list[float]:
    """Seconds of a step, and the peak of memory before it in MiB."""
    assert process.stdin
    assert process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    return [float(word) for word in process.stdout.readline().split()]


@benchmark("Threads that wait: a training step on two threads at 128 px, alone and with every core taken by others")
def openmp(quick: bool) -> Iterable[Row]:
    """auto is what a run sets that begins alone, passive one that begins beside others."""
    waits = ("auto", "default") if quick else ("auto", "passive", "default")
    times: dict[str, list[float]] = {f"{wait}, {when}": [] for wait in waits for when in ("alone", "busy")}
    with ExitStack() as stack:
        processes = {wait: stack.enter_context(stepping(wait, "kept", quick)) for wait in waits}
        for process in processes.values():
            measured(process)
        for _ in range(1 if quick else 9):
            for wait, process in processes.items():
                times[f"{wait}, alone"].append(measured(process)[0])
            with all_cores_busy():
                for wait, process in processes.items():
                    times[f"{wait}, busy"].append(measured(process)[0])
    alone = {name: taken for name, taken in times.items() if name.endswith("alone")}
    yield from ratios(alone, "default, alone", {"auto, alone": ("<=", 1.03)})
    for wait in waits:
        own = {name: taken for name, taken in times.items() if name.startswith(wait)}
        yield from ratios(own, f"{wait}, alone", {f"{wait}, busy": ("<=", 2.2)} if wait != "default" else None)


@benchmark("Freed memory that a process keeps: speed of training steps on two threads, against glibc's default")
def kept_memory(quick: bool) -> Iterable[Row]:
    for side in (64,) if quick else (64, 128, 256):
        times: dict[str, list[float]] = {f"{side} px, kept": [], "default": []}
        with stepping("auto", "kept", quick, side) as kept, stepping("auto", "freed", quick, side) as freed:
            for number in range(2 if quick else 2 + 1200 // side):
                both = [measured(process) for process in (kept, freed)]
                for (second, _), taken in zip(both, times.values(), strict=True):
                    if number:  # the first steps differ from all others
                        taken.append(second)
        yield from ratios(times, "default", {f"{side} px, kept": (">=", 1.0)}, rate=True)
        yield counted(f"{side} px, kept, peak of memory, of default", both[0][1] / both[1][1], "x")
