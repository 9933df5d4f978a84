"""The wheel: what is in it, and that it works alone, away from the checkout."""

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from email.parser import Parser
from pathlib import Path

import pytest
from tiny import TINY

import segexp

pytestmark = pytest.mark.slow

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    missing = [name for name in ("build", "hatchling") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("wheel")
    # With the checkout as working directory a folder named build would hide the module of that name.
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(repository)]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and nothing else."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("no pip here")
    folder = tmp_path_factory.mktemp("site")
    options = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check", "--root-user-action=ignore"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(folder), str(wheel)]
    installed = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert installed.returncode == 0, installed.stderr
    return folder


@pytest.fixture
def run(site: Path, tmp_path: Path) -> Run:
    """Runs Python with the wheel and the libraries, in another folder.

    -S leaves .pth files unread, by which an editable installation would put the checkout on the path.
    """
    libraries = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PYTHONPATH"] = os.pathsep.join([str(site), *libraries])

    def python(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-S", *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return python


def tracked(repository: Path, folder: str, pattern: str) -> set[str]:
    return {p.relative_to(repository).as_posix() for p in (repository / folder).rglob(pattern)}


def test_the_wheel_holds_the_package_and_its_configs_and_no_more(wheel: Path, repository: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        wanted = tracked(repository, "segexp", "*.py") | tracked(repository, "segexp", "*.csv")
        wanted |= {f"segexp/{p}" for p in tracked(repository, "configs", "*.yaml")}
        wanted |= {"segexp/py.typed", *(f"segexp/report/page.{kind}" for kind in ("html.j2", "css", "js"))}
        assert {"segexp/models/buildable.csv", "segexp/configs/train.yaml"} <= wanted
        assert {name for name in names if ".dist-info/" not in name} == wanted
        for name in wanted:
            assert archive.read(name) == (repository / name.replace("segexp/configs", "configs")).read_bytes()


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (entry_points,) = [name for name in archive.namelist() if name.endswith("/entry_points.txt")]
        (metadata,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        assert archive.read(entry_points).decode().split() == ["[console_scripts]", "segexp", "=", "segexp.cli:main"]
        facts = Parser().parsestr(archive.read(metadata).decode())
    assert (facts["Name"], facts["Version"]) == ("segexp", segexp.__version__)
    assert wheel.name == f"segexp-{segexp.__version__}-py3-none-any.whl"
    assert "activation" in str(facts.get_payload())


def test_the_installed_package_is_the_wheels(run: Run, site: Path, repository: Path) -> None:
    printed = run("-c", "import sys, segexp; print(segexp.__file__, *sys.path, sep='\\n')").stdout.splitlines()
    assert printed[0] == str(site / "segexp" / "__init__.py")
    assert str(repository) not in printed
    found = run("-c", "from segexp.config import configs_dir; print(configs_dir())")
    assert found.stdout.strip() == str(site / "segexp" / "configs")


def test_commands_work_from_another_folder(run: Run, site: Path) -> None:
    version = run("-m", "segexp", "--version")
    assert (version.returncode, version.stdout) == (0, f"segexp {segexp.__version__}\n")
    listed = run("-m", "segexp", "list", "datasets")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert {"folder", "lesions"} <= {line.split(" ")[0] for line in listed.stdout.splitlines()}
    completed = run("-m", "segexp", "__complete", "augment=li", "train")
    assert completed.stdout == "augment=light\n"
    studies = json.loads(run("-m", "segexp", "list", "studies", "--json").stdout)
    assert {row["name"]: row["budgets"] for row in studies}["hidden"] == ["full: 65 runs", "smoke: 26 runs"]
    refused = run("-m", "segexp", "train", "activation=arctn")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    script = site / "bin" / "segexp"
    assert script.is_file()
    assert run(str(script), "--version").stdout == f"segexp {segexp.__version__}\n"


def test_a_run_works_from_another_folder(run: Run, tmp_path: Path) -> None:
    dry = run("-m", "segexp", "train", "--dry-run", *TINY)
    assert (dry.returncode, dry.stderr) == (0, "")
    assert f"run directory: {tmp_path}/outputs/default/" in dry.stdout
    assert list(tmp_path.iterdir()) == []
    done = run("-m", "segexp", "train", *TINY, "trainer.epochs=1")
    assert done.returncode == 0, done.stderr
    (run_dir,) = (tmp_path / "outputs" / "default").iterdir()
    assert f"run directory: {run_dir}" in done.stdout
    assert (run_dir / "summary.csv").is_file()
    shown = run("-m", "segexp", "show", str(run_dir))
    assert shown.returncode == 0
    assert "done" in shown.stdout.splitlines()[1]


def test_the_doctor_finds_the_installed_configs(run: Run, site: Path) -> None:
    printed = run("-m", "segexp", "doctor", "--json")
    assert printed.returncode == 0, printed.stdout
    assert str(site / "segexp" / "configs") in printed.stdout
