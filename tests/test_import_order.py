"""The direction of imports, what is imported when, and what is never used: read from the source, and seen at work."""

import ast
import functools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fabricated import record_of
from made_scores import make_pair
from tiny import TINY, tiny_config

import segexp
from segexp.commands import COMMANDS
from segexp.commands.list import KINDS
from segexp.running import prepare

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
    "tracking",
    "running",
    "compare",
    "report",
    "notebook",
    "inference",
    "sweep",
    "plugin",
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


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Every statement, with those of functions, classes and branches; not their expressions, which are most nodes."""
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        for node in getattr(tree, field, ()):
            yield node
            yield from statements(node)


def imports(tree: ast.AST) -> Iterator[str]:
    """Every dotted name that is imported, wherever it stands: in functions and under TYPE_CHECKING as well."""
    for node in statements(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import hides what it reaches"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@functools.cache
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


def test_a_module_imports_only_from_packages_above_it():
    found = {path: out_of_order(name_of(path), parse(path)) for path in MODULES if path != "segexp/__init__.py"}
    assert {path: wrong for path, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize(("module", "source", "wrong"), [
    ("records", "import segexp.running", ["segexp.running"]),
    ("records", "from segexp import running", ["segexp.running"]),
    ("records", "def f():\n    from segexp.config import Config", ["segexp.config.Config"]),
    ("data.folder", "if TYPE_CHECKING:\n    from segexp.models.build import f", ["segexp.models.build.f"]),
    ("data.folder", "from segexp.data.image_set import Pair\nimport segexp", []),
    ("running", "from segexp.nowhere import x", ["segexp.nowhere.x"]),
])  # fmt: skip
def test_the_order_is_held_against_these(module: str, source: str, wrong: list[str]):
    assert out_of_order(module, ast.parse(source)) == wrong


def test_every_package_has_its_place_and_the_top_level_stays_small():
    present = {p.name.removesuffix(".py") for p in PACKAGE.iterdir() if not p.name.startswith("__pycache__")}
    assert present - {"__init__", "py.typed"} == set(PACKAGES)
    assert len(present) <= 25


def test_importing_the_package_imports_nothing_else_of_it_and_reading_tables_no_torch():
    """Names of the Python API are looked up when they are used."""
    line = (
        "import sys, segexp; print(segexp.__version__, *(m for m in sys.modules if m.startswith('segexp.')))\n"
        f"segexp.read_collected; print(*sys.modules.keys() & {set(HEAVY)!r})"
    )
    seen = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
    assert seen.stdout.split() == [segexp.__version__]


FORBIDDEN_MODULES = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "hydra.utils")
FORBIDDEN_NAMES = ("os.system", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "hydra.utils")


def forbidden(tree: ast.AST) -> list[str]:
    """Ways in which a file could run what it reads."""
    found = [name for name in imports(tree) if f"{name}.".startswith(tuple(f"{m}." for m in FORBIDDEN_MODULES))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            name = node.id if isinstance(node, ast.Name) else node.attr
            builtin = isinstance(node, ast.Name) or ast.unparse(node.value) == "builtins"
            if name == "instantiate" or (builtin and name in ("eval", "exec", "__import__")):
                found.append(name)
            elif any(n.endswith(f".{name}") for n in FORBIDDEN_NAMES) and ast.unparse(node) in FORBIDDEN_NAMES:
                found.append(ast.unparse(node))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "_target_" in node.value:
            found.append("_target_")
        if isinstance(node, ast.Call):
            asked = ("shell", "allow_pickle", "weights_only")
            given = {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg in asked}
            found += [k for k in ("shell", "allow_pickle") if given.get(k, "False") != "False"]
            if given.get("weights_only", "True") != "True":
                found.append("weights_only")
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            if called == "load" and ast.unparse(node.func) == "torch.load" and "weights_only" not in given:
                found.append("torch.load without weights_only=True")
    return found


READ_TO_REFUSE = {"segexp/config/launchers.py": ["_target_"]}
"""The one place that reads what a configuration would have called, in order to refuse it (`refuse_code`)."""


def test_nothing_runs_what_it_reads():
    found = {path: forbidden(parse(path)) for path in MODULES}
    assert {path: ways for path, ways in found.items() if ways} == READ_TO_REFUSE


def test_configs_hold_data_only():
    words = ("_target_", "_partial_", "hydra.utils", "instantiate", "!!", "oc.env", "oc.create")
    texts = {path: (REPOSITORY / path).read_text(encoding="utf-8") for path in CONFIGS}
    assert [(path, word) for path, text in texts.items() for word in words if word in text] == []


@pytest.mark.parametrize("source", [
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
])  # fmt: skip
def test_the_scan_finds_these(source: str):
    assert forbidden(ast.parse(source))


@pytest.mark.parametrize("source", ["network.eval()", "torch.load(path, weights_only=True)", "yaml.safe_load(text)"])
def test_the_scan_lets_these_pass(source: str):
    assert forbidden(ast.parse(source)) == []


LIGHT: dict[str, list[list[str]]] = {
    "the command line": [["--help"], ["--version"], ["trian"], ["completion", "bash"]],
    "every help": [[name, "--help"] for name in COMMANDS],
    "every list": [["list", kind, *form] for kind in KINDS for form in ([], ["--json"], ["--markdown"])],
    "completion": [
        ["__complete", "tr"],
        ["__complete", "act", "train"],
        ["__complete", "loss=dice,j", "train"],
        ["__complete", "dataset.", "train", "dataset=folder"],
        ["__complete", "hydra/launcher=", "train", "-m"],
        ["__complete", "", "compare", "x", "--metric"],
        ["__complete", "", "compare", "x", "--questions"],
        ["__complete", "", "evaluate", "x", "--split"],
        ["__complete", "", "bench", "activations"],
    ],
    "what reads records": [
        ["show", "RUN"],
        ["status", "RUN"],
        ["status", "RUN", "--json"],
        ["collect", "RUN", "-o", "OUT"],
        ["diff", "RUN", "RUN"],
    ],
}
"""Commands that answer at once, those of a group in one process."""

SLOW_LIBRARIES = (
    *(*HEAVY, "torch._dynamo", "numpy", "pandas", "scipy", "scipy.stats", "scipy.optimize", "matplotlib", "hydra"),
    *("omegaconf", "PIL", "jinja2"),
)

PROBE = f"""
import json, sys
from segexp.cli import main
for words in json.loads(sys.argv[1]):
    try:
        code = main(words)
    except SystemExit as end:
        code = end.code
    imported = [name for name in {SLOW_LIBRARIES!r} if name in sys.modules]
    print("\\nprobe:", json.dumps([words, code, imported]), file=sys.stderr)
"""
"""Runs commands, and after each prints its exit code and the large libraries that are imported."""


def probe(commands: list[list[str]], folder: Path) -> list[tuple[list[str], int, list[str]]]:
    """Words, exit code and imported large libraries of each command."""
    seen = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(commands)], capture_output=True, text=True, check=False, cwd=folder
    )
    lines = [line.removeprefix("probe: ") for line in seen.stderr.splitlines() if line.startswith("probe: ")]
    assert len(lines) == len(commands), seen.stderr
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the record of a run."""
    folder = tmp_path_factory.mktemp("run")
    record = {"schema_version": 1, "run_id": "0123abcd", "status": "interrupted", "config": {"seed": 0}}
    record |= {"summary": {"dice": 0.5}, "warnings": []}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def best_of_three(*words: str) -> float:
    """Seconds of a process of Python."""
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, *words], capture_output=True, check=True)
        taken.append(time.perf_counter() - start)
    return min(taken)


@pytest.fixture(scope="module")
def import_of_torch() -> float:
    return best_of_three("-c", "import torch")


@pytest.mark.parametrize("group", LIGHT)
def test_what_must_be_quick_imports_no_large_library(group: str, run_dir: Path):
    names = {"RUN": str(run_dir), "OUT": str(run_dir.parent / "tables")}
    for words, code, imported in probe([[names.get(w, w) for w in words] for words in LIGHT[group]], run_dir.parent):
        expected = {"trian": 2, "__complete": code if code in (0, 3) else 0}.get(words[0], 0)
        assert (words, code, imported) == (words, expected, [])


def test_compare_imports_what_it_needs(tmp_path: Path):
    """A test over several data sets, which few comparisons have, needs the second that scipy.stats takes."""
    make_pair(tmp_path, n_seeds=3, n_images=6)
    ((_, code, imported),) = probe([["compare", str(tmp_path)]], tmp_path)
    assert (code, imported) == (0, ["numpy", "pandas", "scipy"])


@pytest.mark.slow
def test_a_finished_run_is_reported_without_torch(tmp_path: Path):
    spec = prepare(tiny_config(tmp_path))
    config = dict.fromkeys(("metrics.empty_policy",), "reference")
    record = record_of(spec.run_id, "done", config, identity=spec.identity)
    spec.run_dir.mkdir(parents=True)
    summary = {"dice": 0.5, "activation": "sigmoid", "best_epoch": 1, "epochs": 2}
    (spec.run_dir / "run.json").write_text(json.dumps(record | {"summary": summary}))
    ((_, code, imported),) = probe([["train", *TINY, f"outputs={tmp_path}"]], tmp_path)
    assert (code, set(imported) & {*HEAVY, "matplotlib"}) == (0, set())


@pytest.mark.slow
def test_the_doctor_imports_torch_alone(tmp_path: Path):
    ((_, _, imported),) = probe([["doctor"]], tmp_path)
    assert set(imported) & {*HEAVY, "torch._dynamo"} == {"torch"}


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("line", [
    "--help", "list activations", "list datasets", "list backbones", "completion bash", "show RUN",
    "__complete loss=dice,j train",
])  # fmt: skip
def test_what_must_be_quick_takes_a_fraction_of_importing_torch(line: str, run_dir: Path, import_of_torch: float):
    words = line.replace("RUN", str(run_dir)).split()
    assert best_of_three("-m", "segexp", *words) < import_of_torch / 4


def test_a_mistake_that_can_be_seen_early_is_reported_before_torch_is_imported(tmp_path: Path):
    lines = [
        "activation=arctn",
        "activation=identity loss=dice",
        "model=dpt",
        "model=pan dataset.image_size=112",
        "dataset.image_size=50",
        "dataset=folder dataset.root=/no/such/folder",
        "backbone.weights=/no/such/file dataset.number=12 dataset.image_size=32",
        "-m trainer.epoch=1,2",
    ]
    commands = [["train", *line.split(), f"outputs={tmp_path}"] for line in lines]
    for words, code, imported in probe(commands, tmp_path):
        assert (words, code, set(imported) & set(HEAVY)) == (words, 2, set())
