"""The direction of imports, what is imported when, and what is never used: read from the source, and seen at work."""

import ast
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "segexp"
MODULES = sorted(p.relative_to(REPOSITORY).as_posix() for p in PACKAGE.rglob("*.py"))
CONFIGS = sorted(p.relative_to(REPOSITORY).as_posix() for p in (REPOSITORY / "configs").rglob("*.yaml"))

PACKAGES = (
    "errors",
    "registry",
    "activations",
    "losses",
    "optim",
    "records",
    "data",
    "models",
    "evaluation",
    "config",
    "training",
    "running",
    "compare",
    "report",
    "sweep",
    "api",
    "commands",
    "cli",
    "__main__",
)
"""A module imports from packages above its own, and from its own: the whole rule, without exceptions."""

HEAVY = ("torch", "torchvision", "segmentation_models_pytorch", "timm")


def name_of(path: str) -> str:
    """segexp/data/folder.py -> data.folder; a package's __init__ has the name of the package."""
    return path.removeprefix("segexp/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(tree: ast.AST) -> Iterator[str]:
    """Every dotted name that is imported, wherever it stands: in functions and under TYPE_CHECKING as well."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import hides what it reaches"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parse(path: str) -> ast.Module:
    return ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))


def out_of_order(module: str, tree: ast.AST) -> list[str]:
    """What ``module`` imports although it may not."""
    own = PACKAGES.index(module.split(".", maxsplit=1)[0])
    wrong = []
    for target in imports(tree):
        if target.split(".")[0] != "segexp" or target in ("segexp", "segexp.__version__"):
            continue
        package = target.split(".")[1]
        if package not in PACKAGES or PACKAGES.index(package) > own:
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("path", [m for m in MODULES if m != "segexp/__init__.py"])
def test_a_module_imports_only_from_packages_above_it(path: str):
    assert out_of_order(name_of(path), parse(path)) == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("records", "import segexp.running", ["segexp.running"]),
        ("records", "from segexp import running", ["segexp.running"]),
        ("records", "def f():\n    from segexp.config import Config", ["segexp.config.Config"]),
        ("data.folder", "if TYPE_CHECKING:\n    from segexp.models.build import f", ["segexp.models.build.f"]),
        ("data.folder", "from segexp.data.image_set import Pair\nimport segexp", []),
        ("running", "from segexp.nowhere import x", ["segexp.nowhere.x"]),
    ],
)
def test_the_order_is_held_against_these(module: str, source: str, wrong: list[str]):
    assert out_of_order(module, ast.parse(source)) == wrong


def test_every_package_has_its_place_and_the_top_level_stays_small():
    present = {p.name.removesuffix(".py") for p in PACKAGE.iterdir() if not p.name.startswith("__pycache__")}
    assert present - {"__init__", "py.typed"} == set(PACKAGES)
    assert len(present) <= 22


def test_the_package_itself_holds_its_version_and_names_its_api():
    """Imported, it brings nothing of segexp and nothing heavy with it; names are looked up when they are used."""
    tree = parse("segexp/__init__.py")
    assert ast.get_docstring(tree)
    statements = list(at_import(tree.body[1:]))
    assert [name for s in statements if isinstance(s, ast.Import | ast.ImportFrom) for name in imports(s)] == [
        "typing.TYPE_CHECKING",
        "typing.Any",
    ]
    assigned = [ast.unparse(s).split(" = ")[0] for s in statements if isinstance(s, ast.Assign)]
    assert assigned == ["__version__", "__all__"]
    assert {node.name for node in tree.body if isinstance(node, ast.FunctionDef)} == {"__getattr__", "__dir__"}


def at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when the module is imported: classes and branches too, functions and TYPE_CHECKING not."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from at_import(node.orelse)
            continue
        yield node
        for _, value in ast.iter_fields(node):
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt | ast.ExceptHandler):
                yield from at_import(value)


FORBIDDEN_MODULES = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "hydra.utils")


def forbidden(tree: ast.AST) -> list[str]:
    """Ways in which a file could run what it reads."""
    found = [name for name in imports(tree) if f"{name}.".startswith(tuple(f"{m}." for m in FORBIDDEN_MODULES))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            name = node.id if isinstance(node, ast.Name) else node.attr
            builtin = isinstance(node, ast.Name) or ast.unparse(node.value) == "builtins"
            if name == "instantiate" or (builtin and name in ("eval", "exec", "__import__")):
                found.append(name)
            elif ast.unparse(node) in ("os.system", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "hydra.utils"):
                found.append(ast.unparse(node))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "_target_" in node.value:
            found.append("_target_")
        if isinstance(node, ast.Call):
            given = {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg}
            found += [k for k in ("shell", "allow_pickle") if given.get(k, "False") != "False"]
            if given.get("weights_only", "True") != "True":
                found.append("weights_only")
            if ast.unparse(node.func) == "torch.load" and "weights_only" not in given:
                found.append("torch.load without weights_only=True")
    return found


READ_TO_REFUSE = {"segexp/config/launchers.py": ["_target_"]}
"""The one place that reads what a configuration would have called, in order to refuse it (`refuse_code`)."""


@pytest.mark.parametrize("path", MODULES)
def test_nothing_runs_what_it_reads(path: str):
    assert forbidden(parse(path)) == READ_TO_REFUSE.get(path, [])


@pytest.mark.parametrize("path", CONFIGS)
def test_configs_hold_data_only(path: str):
    text = (REPOSITORY / path).read_text(encoding="utf-8")
    assert [
        w for w in ("_target_", "_partial_", "hydra.utils", "instantiate", "!!", "oc.env", "oc.create") if w in text
    ] == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "from hydra.utils import instantiate",
        "import hydra\nhydra.utils.instantiate(x)",
        "eval('1')",
        "import builtins\nbuiltins.exec('1')",
        "x['_target_']",
        "subprocess.run('ls', shell=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader)",
        "os.system('ls')",
    ],
)
def test_the_scan_finds_these(source: str):
    assert forbidden(ast.parse(source))


@pytest.mark.parametrize("source", ["network.eval()", "torch.load(path, weights_only=True)", "yaml.safe_load(text)"])
def test_the_scan_lets_these_pass(source: str):
    assert forbidden(ast.parse(source)) == []


LIGHT = {
    "help": ["--help"],
    "version": ["--version"],
    "train help": ["train", "--help"],
    "unknown command": ["trian"],
    "list activations": ["list", "activations"],
    "list losses": ["list", "losses"],
    "list hidden_activations": ["list", "hidden_activations"],
    "list optimizers": ["list", "optimizers", "--json"],
    "list schedulers": ["list", "schedulers"],
    "list datasets": ["list", "datasets", "--markdown"],
    "list models": ["list", "models"],
    "list augmentations": ["list", "augmentations"],
    "list studies": ["list", "studies"],
    "completion": ["completion", "bash"],
    "complete a command": ["__complete", "tr"],
    "complete a key": ["__complete", "act", "train"],
    "complete a value": ["__complete", "loss=dice,j", "train"],
    "complete a data set's key": ["__complete", "dataset.", "train", "dataset=folder"],
    "show": ["show", "RUN"],
    "status": ["status", "RUN"],
    "status as json": ["status", "RUN", "--json"],
    "collect": ["collect", "RUN", "-o", "OUT"],
    "diff": ["diff", "RUN", "RUN"],
}
"""Commands that answer at once."""

SLOW_LIBRARIES = (*HEAVY, "numpy", "pandas", "scipy", "matplotlib", "hydra", "omegaconf", "PIL")

PROBE = f"""
import sys
from segexp.cli import main
try:
    sys.exit(main(sys.argv[1:]))
finally:
    print("\\nimported:", *(name for name in {SLOW_LIBRARIES!r} if name in sys.modules), file=sys.stderr)
"""
"""Runs a command and tells on the last line of stderr which large libraries that took."""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the record of a run."""
    folder = tmp_path_factory.mktemp("run")
    record = {"schema_version": 1, "run_id": "0123abcd", "status": "interrupted", "config": {"seed": 0}}
    record |= {"summary": {"dice": 0.5}, "warnings": []}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize("what", LIGHT)
def test_what_must_be_quick_imports_no_large_library(what: str, run_dir: Path):
    words = [{"RUN": str(run_dir), "OUT": str(run_dir.parent / "tables")}.get(word, word) for word in LIGHT[what]]
    seen = subprocess.run([sys.executable, "-c", PROBE, *words], capture_output=True, text=True, check=False)
    assert seen.returncode == (2 if what == "unknown command" else 0), seen.stderr
    assert seen.stderr.splitlines()[-1] == "imported:"


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize(
    "what", ["help", "list activations", "list datasets", "completion", "complete a value", "show"]
)
def test_what_must_be_quick_takes_less_than_half_a_second(what: str, run_dir: Path):
    words = [str(run_dir) if word == "RUN" else word for word in LIGHT[what]]
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "segexp", *words], capture_output=True, check=True)
        best = min(best, time.perf_counter() - start)
    assert best < 0.5


@pytest.mark.parametrize(
    "overrides",
    [
        ["activation=arctn"],
        ["activation=identity", "loss=dice"],
        ["model=dpt"],
        ["model=pan", "dataset.image_size=112"],
        ["dataset.image_size=50"],
        ["dataset=folder", "dataset.root=/no/such/folder"],
        ["backbone.weights=/no/such/file", "dataset.number=12", "dataset.image_size=32"],
        ["-m", "trainer.epoch=1,2"],
    ],
    ids=" ".join,
)
def test_a_mistake_that_can_be_seen_early_is_told_before_torch_is_imported(overrides: list[str], tmp_path: Path):
    command = [sys.executable, "-c", PROBE, "train", *overrides, f"outputs={tmp_path}"]
    seen = subprocess.run(command, capture_output=True, text=True, check=False)
    assert seen.returncode == 2
    imported = seen.stderr.splitlines()[-1].split()
    assert imported[0] == "imported:"
    assert set(imported) & set(HEAVY) == set()
