"""The wheel and the source distribution: what is in them, and that they work alone, away from the checkout."""

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from email.parser import Parser
from pathlib import Path

import pytest
from tiny import TINY

import segexp

pytestmark = pytest.mark.slow

Run = Callable[..., subprocess.CompletedProcess[str]]


def build(source: Path, folder: Path, *options: str) -> Path:
    """Build in this environment, without a download; returns the folder of what was built."""
    missing = [name for name in ("build", "hatchling") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    # With the checkout as working directory a folder named build would hide the module of that name.
    command = [sys.executable, "-m", "build", *options, "--no-isolation", "--outdir", str(folder), str(source)]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """The wheel, built from the checkout."""
    (wheel,) = build(repository, tmp_path_factory.mktemp("wheel"), "--wheel").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """A folder with the source distribution and the wheel that is built from it."""
    return build(repository, tmp_path_factory.mktemp("distributions"))


def environment(folder: Path) -> Path:
    """A new virtual environment that finds the libraries of this one; returns its Python.

    Their folder is on its path, but .pth files in it stay unread, by which an editable installation would put the
    checkout on the path.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    command = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    (packages / "libraries.pth").write_text("\n".join(sysconfig.get_path(name) for name in ("purelib", "platlib")))
    return python


def install(tool: str, what: Path, python: Path) -> None:
    """Install a distribution with pip or uv, offline."""
    if tool == "pip":
        # Not find_spec: for pip, setuptools' finder warns once distutils has been imported.
        if not any(importlib.metadata.distributions(name="pip")):
            pytest.skip("no pip here")
        words = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index", "--no-build-isolation"]
    else:
        if shutil.which("uv") is None:
            pytest.skip("no uv here")
        words = ["uv", "pip", "install", "--python", str(python), "--offline", "--no-build-isolation"]
    command = [*words, "--no-deps", "--quiet", str(what)]
    # What earlier tests of this process have set is no concern of an installation.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_", "_PIP_"))}
    installed = subprocess.run(command, cwd=what.parent, capture_output=True, text=True, check=False, env=env)
    assert installed.returncode == 0, installed.stderr


def runner(python: Path, cwd: Path) -> Run:
    """Runs this Python in a folder, without the checkout."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(python), *words], cwd=cwd, env=env, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment into which pip has installed the wheel."""
    python = environment(tmp_path_factory.mktemp("environment"))
    install("pip", wheel, python)
    return python


@pytest.fixture(scope="module")
def site(installed: Path) -> Path:
    """The folder that holds the installed wheel."""
    return Path(next(installed.parent.parent.glob("lib/python*/site-packages")))


@pytest.fixture
def run(installed: Path, tmp_path: Path) -> Run:
    """Runs Python with the wheel and the libraries, in another folder."""
    return runner(installed, tmp_path)


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


def test_the_source_distribution_gives_the_same_wheel(wheel: Path, distributions: Path) -> None:
    with zipfile.ZipFile(wheel) as ours, zipfile.ZipFile(distributions / wheel.name) as theirs:
        assert sorted(ours.namelist()) == sorted(theirs.namelist())
        assert all(ours.read(name) == theirs.read(name) for name in ours.namelist())


def test_the_source_distribution_holds_no_results(distributions: Path) -> None:
    (source,) = distributions.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"PKG-INFO", "LICENSE", "pyproject.toml", "configs/train.yaml", "tests/test_wheel.py"} <= names
    tops = {name.partition("/")[0] for name in names}
    assert not tops & {"outputs", ".git", ".ci", ".github", "dist", "shared"}
    assert not any("__pycache__" in name for name in names)


@pytest.mark.parametrize(("tool", "pattern"), [("uv", "*.whl"), ("uv", "*.tar.gz"), ("pip", "*.tar.gz")])
def test_uv_and_pip_install_both(tool: str, pattern: str, distributions: Path, tmp_path: Path) -> None:
    (what,) = distributions.glob(pattern)
    python = environment(tmp_path / "environment")
    install(tool, what, python)
    here = tmp_path / "elsewhere"
    here.mkdir()
    version = runner(python, here)(str(python.with_name("segexp")), "--version")
    assert version.stdout == f"segexp {segexp.__version__}\n"
    found = runner(python, here)("-c", "import segexp; print(segexp.__file__)").stdout
    assert found.startswith(str(tmp_path))
    listed = runner(python, here)("-m", "segexp", "list", "losses")
    assert (listed.returncode, listed.stderr) == (0, "")


def test_the_container_holds_all_that_the_wheel_needs(wheel: Path, repository: Path, tmp_path: Path) -> None:
    lines = (repository / ".dockerignore").read_text().split()
    context, built = tmp_path / "context", tmp_path / "built"
    context.mkdir()
    built.mkdir()
    for name in (line.removeprefix("!") for line in lines if line.startswith("!")):
        copy = shutil.copytree if (repository / name).is_dir() else shutil.copy
        copy(repository / name, context / name)
    (same,) = build(context, built, "--wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as ours, zipfile.ZipFile(same) as theirs:
        assert sorted(ours.namelist()) == sorted(theirs.namelist())


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


def test_commands_work_from_another_folder(run: Run, installed: Path) -> None:
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
    script = installed.with_name("segexp")
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
