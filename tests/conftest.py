"""What all tests share: quiet libraries, one CPU thread, and reference material where it lies beside the repository."""

import functools
import gc
import inspect
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
"""Before torch is loaded, here and in the processes that tests start: threads that spin while they wait would take the
cores of the tests beside them."""
os.environ.pop("COLUMNS", None)  # that of the workers, to which `segexp compare` would fit its text


def pytest_configure(config: pytest.Config) -> None:
    """Tests and the processes that they start write to a cache of their own, one for all workers of a session."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a job in the background, whose commands would ignore it too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):
        os.environ["SEGEXP_CACHE"] = tempfile.mkdtemp(prefix="segexp-cache-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["SEGEXP_CACHE"], ignore_errors=True)


def pytest_collection_finish() -> None:
    """The libraries and thousands of tests are not looked through again by every search for garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small tensors are fastest on one thread, and tests in parallel do not fight for cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _composed_once() -> Iterator[None]:
    """A choice of groups is composed once for the same entries, whichever plugins were loaded in between, and Hydra's
    store is not copied, a tenth of a second each, for every configuration."""
    from hydra.core.config_store import ConfigStore

    from segexp.config import compose
    from segexp.registry import REGISTRIES

    composed, known = inspect.unwrap(compose._composed), dict[Any, Any]()

    def once(overrides: tuple[str, ...]) -> Any:
        entries = [entry for registry in REGISTRIES for entry in registry.values()]
        key = (overrides, *map(id, entries))
        if key not in known:
            known[key] = composed(overrides), entries  # kept, so that no other entry has their ids
        return known[key][0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compose, "_composed", once)
        patch.setattr(ConfigStore, "__deepcopy__", lambda store, memo: store, raising=False)
        yield


@pytest.fixture(autouse=True, scope="session")
def _runs_cost_less() -> Iterator[None]:
    """No power fails during the tests, so that nothing waits for the disk. The figures of a run, which take longer than
    a tiny run, are drawn where a test asks for `figures`."""
    from segexp.evaluation import pictures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(pictures, "draw_figures", functools.wraps(pictures.draw_figures)(lambda run_dir: None))
        yield


@pytest.fixture
def figures() -> Iterator[None]:
    """The figures of runs are drawn in this test."""
    from segexp.evaluation import pictures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "draw_figures", inspect.unwrap(pictures.draw_figures))
        yield


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """A command sends the log to its terminal, and would do so for the tests after it."""
    log = logging.getLogger("segexp")
    yield
    log.handlers[:], log.propagate = [], True


@pytest.fixture(autouse=True, scope="module")
def _no_plugins_of_others() -> Iterator[None]:
    """A command with --plugin leaves its plugins loaded, as a process has one command."""
    from segexp.registry import plugins

    yield
    plugins.use([])


@pytest.fixture
def session() -> Iterator[list[str]]:
    """Hydra, set up as for a command; where further configuration is looked for."""
    from segexp.config.compose import hydra_session

    with hydra_session() as extra:
        yield extra


@pytest.fixture
def segexp_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`segexp ...` typed in the folder of the test, without the seconds that a process takes to start: its output."""
    from segexp import cli
    from segexp.registry import plugins

    monkeypatch.chdir(tmp_path)

    def run(*words: str, code: int = 0) -> str:
        capsys.readouterr()
        ended = cli.main(words)
        plugins.use([])
        printed = "".join(capsys.readouterr())
        assert ended == code, printed
        return printed

    return run


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Gives the folder of a name, which the first worker of the session that asks for it has filled."""
    import fcntl

    base = tmp_path_factory.getbasetemp()
    session = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def folder(name: str, fill: Callable[[Path], object]) -> Path:
        with (session / f"{name}.lock").open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not lock.seek(0, os.SEEK_END):  # the place of before the wait would be the old end
                shutil.rmtree(session / name, ignore_errors=True)
                (session / name).mkdir()
                fill(session / name)
                lock.write("filled")
        return session / name

    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Golden values and real images, which are never part of the repository: $SEGEXP_SHARED, or ../shared."""
    folder = Path(os.environ.get("SEGEXP_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no reference material at {folder}")
    return folder
