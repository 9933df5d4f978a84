"""Commands that must answer at once, as whole processes: with the start of Python, and what they import."""

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping

from benchmarks import Row, benchmark, in_turns

TINY = (
    *("dataset.number=24", "dataset.image_size=32", "trainer.epochs=1", "trainer.device=cpu", "trainer.threads=1"),
    *("model.encoder_depth=3", "model.decoder_channels=[16,8,8]"),
)

BASELINE = "import torch"


def process(*words: str) -> Callable[[], object]:
    """A call of Python with these words. Raises CalledProcessError where it fails."""
    return lambda: subprocess.run([sys.executable, *words], check=True, capture_output=True)


def segexp(*words: str) -> Callable[[], object]:
    """A call of a command."""
    return process("-m", "segexp", *words)


def rows_of(times: Mapping[str, list[float]], most: Mapping[str, float]) -> list[Row]:
    """A row of seconds for each call, with its bound where ``most`` names one."""
    rows = []
    for name, taken in times.items():
        several = len(taken) > 1
        low, middle, high = statistics.quantiles(taken, n=4, method="inclusive") if several else taken * 3
        rows.append(Row(name, middle, low, high, "s", "", ("<=", most[name]) if name in most else None, len(taken)))
    return rows


@benchmark("Commands that must answer at once, in seconds of the whole process")
def commands(quick: bool) -> Iterable[Row]:
    """`train` of a finished run and `doctor` are held to what ``import torch`` takes beside them."""
    rounds = 1 if quick else 9
    with tempfile.TemporaryDirectory() as folder:
        settings = (*TINY, f"outputs={folder}")
        calls = {
            BASELINE: process("-c", BASELINE),
            "train, finished run": segexp("train", *settings),
            "train --dry-run": segexp("train", *settings, "--dry-run"),
            "doctor": segexp("doctor"),
            "list backbones": segexp("list", "backbones"),
            "list activations": segexp("list", "activations"),
            "--help": segexp("--help"),
        }
        calls["train, finished run"]()  # trains it
        times = in_turns(calls, rounds, warm_up=int(rounds > 1))
    for name in ("train, finished run", "doctor"):
        beyond = f"{name}, beyond {BASELINE}"
        times[beyond] = [mine - base for mine, base in zip(times[name], times[BASELINE], strict=True)]
    most = {"list backbones": 0.2, **{name: 0.5 for name in times if name.endswith(f"beyond {BASELINE}")}}
    yield from rows_of(times, most)
