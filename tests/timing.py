"""Bounds on measured time that hold on a slow or busy machine: multiples of other work, timed beside what is tested."""

import csv
import hashlib
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

HANGS_S = 600.0
"""A process that takes longer has stopped; none of those that tests wait for needs a tenth of it."""

REFERENCE_S = 0.65
"""What `YARDSTICK` takes on the machine for which bounds were set in seconds."""

YARDSTICK = """
import csv, hashlib, io, json
import numpy as np, pandas as pd

text = "".join(f"{i},{i / 7:.6f},{i % 13},name{i % 10}\\n" for i in range(60_000))
for _ in range(3):
    rows = list(csv.reader(io.StringIO(text)))
    total = sum(float(row[1]) for row in rows)
    frame = pd.read_csv(io.StringIO(text), names=list("abcd"))
    frame.groupby("d").b.mean()
    json.loads(json.dumps(rows))
    for _ in range(20):
        hashlib.sha256(text.encode()).hexdigest()
    np.sort(np.asarray(frame.b).repeat(20))
"""
"""Work of the kinds that commands do: imports, cells, JSON, checksums, arrays. Of fixed size."""


def slowness(at_once: int = 1) -> float:
    """How many times slower this machine is just now than the one of the bounds, at least 1.

    at_once: copies that run beside each other, as many as there are processes in what is tested.
    """
    taken = []
    for _ in range(3):
        begun = time.perf_counter()
        copies = [subprocess.Popen([sys.executable, "-c", YARDSTICK]) for _ in range(at_once)]
        assert [copy.wait() for copy in copies] == [0] * at_once
        taken.append(time.perf_counter() - begun)
    return max(1.0, statistics.median(taken) / REFERENCE_S)


def within(seconds: float, bound: float, at_once: int = 1) -> bool:
    """Whether ``seconds`` of this machine are at most ``bound`` seconds of that of the bounds; call it at once."""
    return seconds <= bound or seconds <= bound * slowness(at_once)


def bare_reading(root: Path) -> float:
    """Seconds to read every record and table below a folder, with checksums, and to make nothing of them."""
    begun = time.perf_counter()
    for path in root.rglob("*"):
        if path.suffix in (".json", ".csv"):
            content = path.read_bytes()
            hashlib.sha256(content).hexdigest()
            text = content.decode()
            _ = json.loads(text) if path.suffix == ".json" else list(csv.reader(text.splitlines()))
    return time.perf_counter() - begun
