"""Settings of launchers: typed, closed to code from files; engines that cannot be used are refused with a cure."""

import importlib.metadata
import re
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore
from messages import mentions
from omegaconf import DictConfig, OmegaConf
from tiny import TINY

from segexp.config import configs_dir
from segexp.config.compose import compose_raw, hydra_session
from segexp.config.launchers import ENGINES, check_engine
from segexp.errors import DONE, FAILED, INTERRUPTED, REFUSED, BusyError, UsageError
from segexp.sweep import engines
from segexp.sweep.plan import base_of

NAMES = list(ENGINES)


@pytest.fixture
def everything_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1")
    monkeypatch.setattr(shutil, "which", lambda program: f"/bin/{program}")


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize("name", NAMES)
def test_the_settings_are_ours_whether_or_not_the_plugin_is_installed(name: str) -> None:
    settings = compose_raw([f"hydra/launcher={name}"]).hydra.launcher
    assert OmegaConf.get_type(settings) is ENGINES[name].settings


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize("path", sorted((configs_dir() / "hydra" / "launcher").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_ready_configuration_differs_from_the_settings_in_what_it_says(path: Path) -> None:
    settings = compose_raw([f"hydra/launcher={path.stem}"]).hydra.launcher
    said = OmegaConf.load(path)
    assert isinstance(said, DictConfig)
    (name,) = said.pop("defaults")
    engine = ENGINES[name]
    assert OmegaConf.get_type(settings) is engine.settings
    assert settings == OmegaConf.merge(OmegaConf.structured(engine.settings), said)
    assert settings != OmegaConf.structured(engine.settings)


@pytest.mark.usefixtures("session", "everything_installed")
@pytest.mark.parametrize(("name", "override", "said"), [
    ("submitit_slurm", "hydra.launcher.timeout_min=soon", r"hydra\.launcher\.timeout"),
    ("submitit_slurm", "seed=1", "needs sbatch, which is not on this machine"),
    # Hydra's own runs jobs one after the other in this process, where the first that is killed ends the sweep.
    ("basic", "seed=1", r"hydra/launcher=basic .* local, submitit_slurm, ray"),
    ("joblib", "seed=1", r"hydra/launcher=joblib .* hydra/launcher=local hydra\.launcher\.n_jobs=N"),
])  # fmt: skip
def test_unusable_launchers_are_refused(name: str, override: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(UsageError, match=said):
        check_engine(compose_raw([f"hydra/launcher={name}", override]).hydra)


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize("name", NAMES)
def test_a_missing_plugin_is_told_with_its_cure(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(distribution: str) -> str:
        raise importlib.metadata.PackageNotFoundError(distribution)

    monkeypatch.setattr(importlib.metadata, "version", version)
    tree = compose_raw([f"hydra/launcher={name}"])
    extra = "slurm" if name == "submitit_slurm" else name
    with pytest.raises(UsageError, match=rf"pip install 'segexp\[{extra}\]'"):
        check_engine(tree.hydra)


@pytest.mark.usefixtures("session", "everything_installed")
def test_only_slurm_goes_on_without_this_command() -> None:
    for name in NAMES:
        check_engine(compose_raw([f"hydra/launcher={name}"]).hydra)
    check_engine(compose_raw(["hydra/launcher=submitit_slurm"]).hydra, wait=False)
    with pytest.raises(UsageError, match=r"--no-wait: .*submitit_slurm"):
        check_engine(compose_raw(["hydra/launcher=ray"]).hydra, wait=False)


@pytest.mark.slow
@pytest.mark.usefixtures("session")
def test_the_lines_of_the_documentation_compose(repository: Path) -> None:
    text = (repository / "docs" / "clusters.md").read_text(encoding="utf-8")
    lines = "".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)).replace("\\\n", " ").splitlines()
    chosen = {OmegaConf.get_type(base_of(shlex.split(line)[3:], []).hydra.launcher) for line in lines}
    assert chosen == {engine.settings for engine in ENGINES.values()}
    mentioned = set(re.findall(r"hydra\.launcher\.([a-z_]+(?:\.[a-z_]+)*)", text))
    assert len(mentioned) >= 6
    structures = [OmegaConf.structured(e.settings) for e in ENGINES.values()]
    assert [m for m in mentioned if not any(_has(s, m) for s in structures)] == []


def _has(settings: Any, dotted: str) -> bool:
    parent, _, key = dotted.rpartition(".")
    node = OmegaConf.select(settings, parent) if parent else settings
    return node is not None and key in node


@pytest.mark.slow
def test_the_file_of_the_documentation_composes(repository: Path, tmp_path: Path) -> None:
    text = (repository / "docs" / "clusters.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "hydra" / "launcher").mkdir(parents=True)
    (tmp_path / "hydra" / "launcher" / "ours.yaml").write_text(block)
    with hydra_session(tmp_path) as extra:
        ready = compose_raw([*extra, "hydra/launcher=slurm_gpu"]).hydra.launcher
        ours = compose_raw([*extra, "hydra/launcher=ours"]).hydra.launcher
    # "this file without partition and account"; what the ready one says beside it is how many run at a time.
    assert {key for key in ours if ours[key] != ready[key]} <= {"partition", "account", "array_parallelism"}


# A configuration from a stranger


SYSTEM = "{_target_: os.system, command: touch owned}"


@pytest.mark.parametrize(("name", "block", "said"), [
    ("submitit_slurm", "launcher: {setup: [touch owned]}", r"hydra\.launcher\.setup .*command line"),
    ("submitit_slurm", f"launcher: {{additional_parameters: {SYSTEM}}}", "unknown key"),
    ("submitit_slurm", 'launcher: {partition: "gpu\\ntouch owned"}', r"hydra\.launcher\.partition .*remove it"),
    ("submitit_slurm", f"launcher: {SYSTEM}", "unknown key"),
    ("basic", "launcher: {_target_: os.system}", "os.system.*remove it"),
    ("ray", "launcher: {ray: {init: {address: 203.0.113.1:6379}}}", "address .*command line"),
    ("ray", "launcher: {ray: {init: {runtime_env: {pip: [evil]}}}}", "unknown key"),
    ("local", f"launcher: {{n_jobs: {SYSTEM}}}", r"hydra\.launcher\.n_jobs.*remove it"),
    ("local", f"launcher: {SYSTEM}", r"hydra\."),
    ("local", f"sweeper: {SYSTEM}", r"hydra\."),
    ("local", f"callbacks: {{x: {SYSTEM}}}", r"hydra\.callbacks .*remove it"),
    ("local", "job: {env_set: {PATH: /evil}}", r"hydra\.job\.env_set .*remove it"),  # PATH decides what runs, too
    ("basic", f"launcher: {{x: {SYSTEM}}}", "unknown key"),
])  # fmt: skip
def test_a_study_of_a_stranger_runs_no_code(name: str, block: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    text = f"# @package _global_\nstudy: {{name: evil}}\nhydra:\n  {block}\n"
    (tmp_path / "study" / "evil.yaml").write_text(text)
    with hydra_session(tmp_path) as extra, pytest.raises(UsageError, match=said):
        compose_raw([*extra, f"hydra/launcher={name}", "study=evil"])


def test_a_file_may_hold_what_runs_nothing_and_the_command_line_what_runs(tmp_path: Path) -> None:
    (tmp_path / "hydra" / "launcher").mkdir(parents=True)
    text = "defaults: [submitit_slurm]\npartition: gpu\ngpus_per_node: 1\nexclude: node[01-03]\n"
    (tmp_path / "hydra" / "launcher" / "ours.yaml").write_text(text)
    with hydra_session(tmp_path) as extra:
        assert compose_raw([*extra, "hydra/launcher=ours"]).hydra.launcher.partition == "gpu"
        words = [*extra, "hydra/launcher=submitit_slurm", "hydra.launcher.setup=[module load cuda]"]
        assert compose_raw(words).hydra.launcher.setup == ["module load cuda"]


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize("name", ["submitit_local", "ray_aws"])
def test_launchers_that_are_not_known_are_refused(name: str) -> None:
    if f"{name}.yaml" not in ConfigStore.instance().list("hydra/launcher"):
        pytest.skip(f"no launcher {name} here")
    with pytest.raises(UsageError, match=r"^hydra\.launcher names .*remove it"):
        compose_raw([f"hydra/launcher={name}"])


# Inside a job


OVERRIDES = [*TINY, "outputs=out", "activation=arctan"]


@pytest.fixture
def in_a_job(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undoes what a job does to its process."""
    monkeypatch.chdir(Path.cwd())
    yield
    engines.log.handlers.clear()
    engines.log.propagate = True


@pytest.mark.usefixtures("in_a_job")
@pytest.mark.parametrize(("raised", "code", "said"), [
    (UsageError("no such data"), REFUSED, "no such data"),
    (KeyboardInterrupt(), INTERRUPTED, "interrupted"),
    (ZeroDivisionError("by zero"), FAILED, "ZeroDivisionError: by zero"),
])  # fmt: skip
def test_a_job_composes_its_overrides_in_the_folder_of_the_sweep_and_raises_nothing(
    raised: BaseException, code: int, said: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    seen: list[Any] = []

    def fail(config: Any, *_: Any) -> Any:
        seen.append((config.activation.name, Path.cwd()))
        raise raised

    monkeypatch.setattr(engines, "_run", fail)
    assert engines.run_job(OVERRIDES, str(tmp_path)) == code
    assert seen == [("arctan", tmp_path)]
    told = capsys.readouterr().err
    assert said in told
    assert "activation=arctan" in told
    folder = str(tmp_path / "nowhere")  # is not shared with the machine of the job
    assert engines.run_job(OVERRIDES, folder) == REFUSED
    assert folder in capsys.readouterr().err


def test_a_job_whose_data_have_changed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = SimpleNamespace(run_id="1", image_set=SimpleNamespace(location="/images"), plugins={})
    monkeypatch.setattr(engines, "prepare", lambda config: changed)
    monkeypatch.setattr("segexp.running.execute.execute", lambda spec: SimpleNamespace(status="done"))
    assert engines.run_job(OVERRIDES, str(tmp_path), "2") == REFUSED
    assert "/images" in capsys.readouterr().err
    assert engines.run_job(OVERRIDES, str(tmp_path), "1") == DONE


@pytest.mark.parametrize("code", [DONE, FAILED, REFUSED, INTERRUPTED])
def test_a_job_of_slurm_that_is_not_done_ends_with_its_code(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(engines, "run_job", lambda *_: code)
    monkeypatch.setattr(time, "sleep", slept.append)
    with nullcontext() if code == DONE else pytest.raises(SystemExit) as ended:
        engines.SlurmJob()([], ".")
    assert (DONE if ended is None else ended.value.code) == code
    # An interrupted one is still there when Slurm comes to requeue it.
    assert slept == ([engines.PAUSE_SECONDS] if code == INTERRUPTED else [])


@pytest.mark.parametrize("restarted", [True, False])
def test_a_requeued_job_waits_for_its_former_process(restarted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    tried: list[int] = []

    def execute(prepared: Any) -> str:
        tried.append(1)
        if len(tried) < 3:
            raise BusyError("written by another process")
        return "done"

    monkeypatch.setattr(engines, "prepare", lambda config: config)
    monkeypatch.setattr("segexp.running.execute.execute", execute)
    monkeypatch.setattr(time, "sleep", slept.append)
    if restarted:
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        config: Any = None
        assert engines._run(config, "") == "done"
        assert len(slept) == 2
    else:
        monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
        with pytest.raises(BusyError, match="written by"):
            engines._run(None, "")  # type: ignore[arg-type]


# Waiting for Slurm


def test_waiting_ends_with_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A controller that does not answer is not an empty queue."""
    script = f"""\
#!/bin/sh
n=$(cat {tmp_path}/n 2>/dev/null || echo 0)
echo $((n + 1)) > {tmp_path}/n
case $n in
  0) printf '7\\n7\\n8\\n' ;;
  1) echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1 ;;
  2) echo 8; echo 77 ;;
esac
"""
    (tmp_path / "squeue").write_text(script)
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(engines.log, "propagate", True)
    engines._await_slurm({"7"})
    assert len(slept) == 2
    assert mentions(caplog.text, "squeue", "trying again", "slurm_load_jobs")


def test_a_failure_of_the_engine_is_one_line(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(engines.log, "propagate", True)
    with engines._failure_logged():
        raise RuntimeError("no pool\nand more")
    (record,) = caplog.records
    assert record.getMessage().endswith("RuntimeError: no pool")
