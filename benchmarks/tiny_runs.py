"""What a run costs beyond its epochs, in a process that has imported everything."""

import csv
import statistics
import tempfile
import time
from collections.abc import Iterable

from benchmarks import Row, benchmark
from segexp.config.compose import compose_job, hydra_session, typed_of
from segexp.running import prepare
from segexp.running.execute import execute

ASKED = ("<=", 0.8)

WORDS = ("dataset.number=24", "dataset.image_size=64", "trainer.epochs=1", "trainer.device=cpu")


def overhead(*overrides: str) -> float:
    """Seconds of a run of one epoch beyond this epoch: data, network, scores, checkpoint and tables."""
    with tempfile.TemporaryDirectory() as outputs:
        with hydra_session() as extra:
            config = typed_of(compose_job([*WORDS, f"outputs='{outputs}'", *overrides], extra))
        begun = time.perf_counter()
        run_dir = execute(prepare(config)).run_dir
        seconds = time.perf_counter() - begun
        with (run_dir / "timings.csv").open(encoding="utf-8") as table:
            return seconds - sum(float(row["seconds"]) for row in csv.DictReader(table))


@benchmark("A run of 24 images and one epoch: seconds beyond the epoch, in a process that has imported everything")
def tiny_runs(quick: bool) -> Iterable[Row]:
    overhead()  # imports, and the shared store
    taken = [overhead(f"seed={seed}") for seed in range(1, 2 if quick else 16)]
    low, middle, high = statistics.quantiles(taken, n=4, method="inclusive") if len(taken) > 1 else taken * 3
    yield Row("default settings", middle, low, high, "s", bound=ASKED, rounds=len(taken))
