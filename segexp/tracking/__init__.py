"""Runs in the tools people watch them with. Each tracker is a process (and session, as Ctrl-C is for the run) of its
own that reads the files of the run: it can neither slow it, nor draw its random numbers, nor let it fail. No torch."""

import importlib.util
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from os import SEEK_END
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired

from segexp.config import TRACKERS
from segexp.errors import UsageError
from segexp.records.owned import entered

FOLDER = "tracking"  # of a run directory: what trackers write, and their logs
LIMIT_SECONDS = 20.0  # how long the end of a run waits for its trackers

# Without the current folder, where a stranger's csv.py or mlflow.py would be run.
PATH = "import sys; sys.path = [*filter(None, sys.path), sys.argv.pop(1)]; "
CODE = PATH + "from segexp.tracking.process import main; main()"


def check_installed(names: Sequence[str]) -> None:
    """Raise UsageError where the package of a tracker is not installed."""
    for name in names:
        if TRACKERS[name] and importlib.util.find_spec(name) is None:
            raise UsageError(f"tracking={name} is not installed: pip install 'segexp[{TRACKERS[name]}]'")


def track(run_dir: Path, names: Sequence[str]) -> Callable[[], list[str]]:
    """Start the trackers of a run. Returns what to call when the end of the run is recorded: it waits until they have
    reported that, and returns a line for each that failed. Failures are logged at once."""
    over, failures = threading.Event(), list[str]()

    def follow(name: str) -> None:
        words = [sys.executable, "-c", CODE, str(Path(__file__).parents[2]), str(run_dir.absolute()), name]
        words += [str(LIMIT_SECONDS)]
        try:
            with entered(run_dir, FOLDER, make=True) as folder, folder.open(f"{name}.log", "w+b") as log:
                folder.refuse_odd(name)  # the folder of a tool, which would follow a link
                process = Popen(words, stdin=PIPE, stdout=log, stderr=log, start_new_session=True)
                while process.poll() is None:
                    if over.wait(0.5):
                        break
                early, hangs = not over.is_set(), False
                try:
                    process.communicate(timeout=LIMIT_SECONDS)  # closes stdin
                except TimeoutExpired:
                    hangs = True
                    process.kill()
                    process.communicate()
                log.seek(-min(log.seek(0, SEEK_END), 10_000), SEEK_END)
                printed = log.read().decode(errors="replace").splitlines()
            code = process.returncode
            how = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
            why = f"no answer in {LIMIT_SECONDS:g} s" if hangs else how if code or early else ""
            # Of a traceback that a full disk has cut, the last line gives no reason.
            said = [line for line in printed if line[:1].strip() and not line.startswith("Traceback")]
            reason = ": ".join([why, *said[-1:]]) if why else ""
        except (OSError, UsageError) as error:
            reason = str(error)
        if reason:
            failures.append(f"tracking={name} failed, without effect on the run ({FOLDER}/{name}.log): {reason[:300]}")
            logging.getLogger("segexp").warning("%s", failures[-1])

    threads = [threading.Thread(target=follow, args=(name,), daemon=True) for name in names]

    def finish() -> list[str]:
        over.set()
        for thread in threads:
            thread.join()
        return failures

    for thread in threads:
        thread.start()
    return finish
