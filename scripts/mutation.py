"""Mutation testing: is a small error in the code that computes noticed by a test?

    python scripts/mutation.py                # the sample, one mutant after the other; it goes on where it was stopped
    python scripts/mutation.py --again        # mutants that survived, with the tests as they are now
    python scripts/mutation.py --only 17      # one of them, and what pytest printed
    python scripts/mutation.py --page         # docs/mutation.md, with what was kept

A mutant is one change of one expression or statement of `PLACES`. The sample are the mutants with the least hashes of
what they change and where, so that edits elsewhere do not change it, and its first n are a sample, too. Tests run in a
copy of the commit, of a process that has imported torch and forks for each mutant: first those that execute the mutated
line, the quickest first, then the others of their files. Killed means that a test failed that passes without a mutant.
"""

import argparse
import ast
import collections
import contextlib
import copy
import gc
import hashlib
import importlib
import importlib.metadata
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent

STATISTICS = ("statistics", "procedures", "sequential", "datasets", "factorial", "blocks")
PLACES = (
    "segexp/activations",
    "segexp/losses",
    *(f"segexp/evaluation/{name}.py" for name in ("__init__", "measures", "ranking", "boundary", "objects", "score")),
    *(f"segexp/compare/{name}.py" for name in STATISTICS),
)
TESTS = (
    *("tests/activations", "tests/evaluation", "tests/compare"),
    *("tests/test_losses.py", "tests/test_loss_identities.py", "tests/test_shape_losses.py", "tests/test_pairing.py"),
    *("tests/commands/test_list.py", "tests/commands/test_curves.py", "tests/models/test_init.py"),
    *(f"tests/running/test_{name}.py" for name in ("overlapping", "scored_volumes", "learned_runs")),
)
"""By default those that are not slow. Of the others some fail, too, so that what is killed is a lower bound."""

FEW = 5


WARM: tuple[str, ...] = (
    "torch",
    "torchvision",
    "segmentation_models_pytorch",
    "scipy.stats",
    "scipy.ndimage",
    "scipy.optimize",
    "pandas",
)
WARM += ("skimage.morphology", "matplotlib.pyplot", "mpmath", "statsmodels.api", "hydra", "jinja2", "hypothesis")

# Mutants

SWAPPED: dict[type[ast.AST], type[Any]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Add,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.RShift: ast.LShift, ast.LShift: ast.RShift,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """after: text in place of ``before``, the characters [begin, end) of the file. lines: of the expression, or of its
    statement. scope: the function in which it is evaluated, "" when the module is imported. key: see above."""

    file: str
    scope: str
    lines: tuple[range, range]
    begin: int
    end: int
    before: str
    after: str
    key: str


REPLACING = {"abs", "int", "max", "min", "round", "sorted"}
"""Functions of Python whose result may be mistaken for their first argument."""


def changes(node: ast.AST, names: set[str]) -> Iterator[ast.AST]:
    """What an expression or statement is changed to, one after the other. Texts are left alone. names: of modules and
    classes, which are no objects with values."""
    changed: Any = copy.deepcopy(node)
    match node:
        case ast.BinOp() | ast.AugAssign() | ast.BoolOp() if type(node.op) in SWAPPED:
            changed.op = SWAPPED[type(node.op)]()
            yield changed
        case ast.Compare():
            for n, op in enumerate(node.ops):
                changed = copy.deepcopy(node)
                changed.ops[n] = SWAPPED[type(op)]()
                yield changed
        case ast.UnaryOp():
            yield node.operand
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(value=int() as whole):
            yield ast.Constant(whole + 1)
        case ast.Constant(value=float() as number):
            yield ast.Constant(number * 2 or 1.0)
        case ast.IfExp():
            changed.body, changed.orelse = node.orelse, node.body
            yield changed
        case ast.Expr(value=ast.Call()):
            yield ast.Pass()
        case ast.Call():
            yield from _less_called(node, names)


def _less_called(node: ast.Call, names: set[str]) -> Iterator[ast.AST]:
    """A call without one of its keywords, or what it is called on or with in its place."""
    for n, keyword in enumerate(node.keywords):
        if keyword.arg:
            changed = copy.deepcopy(node)
            del changed.keywords[n]
            yield changed
    root = node.func
    while isinstance(root, ast.Attribute):
        root = root.value
    if not isinstance(node.func, ast.Attribute):
        if isinstance(root, ast.Name) and root.id in REPLACING and node.args:
            yield node.args[0]
    elif not (isinstance(root, ast.Name) and root.id in names):
        yield node.func.value
    elif node.args and not isinstance(node.args[0], ast.Starred | ast.List | ast.Tuple):
        yield node.args[0]


class _Places(ast.NodeVisitor):
    """Every node that may be changed, with its scope and the statement around it."""

    def __init__(self) -> None:
        self.found: list[tuple[ast.AST, str, range]] = []
        self._scope: tuple[str, ...] = ()
        self._lines = range(0)

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            last = node.body[0].lineno if isinstance(getattr(node, "body", None), list) else node.end_lineno + 1  # type: ignore
            self._lines = range(node.lineno, max(last, node.lineno + 1))
        self.found.append((node, ".".join(self._scope), self._lines))
        super().visit(node)

    def _within(self, name: str, inside: list[Any], outside: list[Any]) -> None:
        for child in outside:
            self.visit(child)
        before, self._scope = self._scope, (*self._scope, name)
        for child in inside:
            self.visit(child)
        self._scope = before

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        defaults = [d for d in (*node.args.defaults, *node.args.kw_defaults) if d]
        self._within(node.name, node.body, [*node.decorator_list, *defaults])

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._within("<lambda>", [node.body], node.args.defaults)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value:
            self.visit(node.value)

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) != "TYPE_CHECKING":
            self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        """What a message says is not tried."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Nor what is shown."""

    visit_Assert = visit_Raise  # type: ignore[assignment]


def mutants_of(file: str, source: str, seed: int) -> Iterator[Mutant]:
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))

    def at(line: int, column: int) -> int:
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    places, seen, tree = _Places(), collections.Counter[str](), ast.parse(source)
    places.visit(tree)
    imported = (a for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) for a in node.names)
    names = {(a.asname or a.name).split(".")[0] for a in imported} | {"dict", "set", "tuple", "list", "str"}
    for found, scope, statement in places.found:
        if not scope and isinstance(found, ast.Call):
            continue  # what is registered under a name, and the facts about it
        for changed in changes(found, names):
            node: Any = found
            begin, end = at(node.lineno, node.col_offset), at(node.end_lineno, node.end_col_offset)
            before, after = source[begin:end], ast.unparse(changed)
            # A change may bind less tightly than what it takes the place of.
            after = f"({after})" if isinstance(changed, ast.expr) and not isinstance(changed, ast.Constant) else after
            key = f"{seed} {file} {scope} {lines[node.lineno - 1].strip()} {before} {after}"
            seen[key] += 1
            key = hashlib.sha256(f"{key} {seen[key]}".encode()).hexdigest()[:12]
            yield Mutant(
                file, scope, (range(node.lineno, node.end_lineno + 1), statement), begin, end, before, after, key
            )


def sample(root: Path, number: int, seed: int) -> tuple[list[Mutant], int]:
    """The sample, and how many mutants there are."""
    files = sorted(
        path for place in PLACES for path in ([root / place] if place.endswith(".py") else (root / place).rglob("*.py"))
    )
    every = [m for path in files for m in mutants_of(path.relative_to(root).as_posix(), path.read_text("utf-8"), seed)]
    return sorted(every, key=lambda m: m.key)[:number], len(every)


# Tests


class Chosen:
    """A plugin of pytest. Without ``order`` it records the lines and the seconds of each test; with it, it keeps these
    tests, in this order, and records which one failed. One that takes ten times as long as before ends the process."""

    def __init__(self, order: list[str] | None = None, usual: dict[str, float] | None = None) -> None:
        self.order, self.usual, self.failed, self.ran = order, usual or {}, "", 0
        self.seconds = dict[str, float]()
        self.bad: set[str] = set()

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        if self.order is not None:
            place = {name: n for n, name in enumerate(self.order)}
            items[:] = sorted((i for i in items if i.nodeid in place), key=lambda i: place[i.nodeid])
            return
        import coverage

        self.coverage = coverage.Coverage(data_file=None, source=["segexp"], messages=False)
        self.coverage.start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.ran, self.began = self.ran + 1, time.process_time()
        if self.order is None:
            self.coverage.switch_context(nodeid)
        else:
            signal.setitimer(signal.ITIMER_PROF, 20 + 10 * self.usual.get(nodeid, 0))

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.seconds[nodeid] = time.process_time() - self.began

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed = self.failed or report.nodeid
            self.bad.add(report.nodeid)


@dataclass
class Covered:
    """seconds: of each test that passes. tests: file -> line -> those that execute it."""

    seconds: dict[str, float]
    tests: dict[str, dict[int, list[str]]]

    def order(self, mutant: Mutant) -> dict[str, list[str]]:
        """File -> its tests to run: those that execute the line, or the statement, or, of what is done on import, any
        line of the module; the quick ones first. Of a line that few execute, whose result may be kept for other tests,
        all tests of their files. First the files of its package, and
        those with many tests a second."""
        of_lines = self.tests.get(mutant.file, {})
        chosen = {t for line in mutant.lines[0] for t in of_lines.get(line, ())} if mutant.scope else set()
        if mutant.scope and not chosen:
            chosen = {t for line in mutant.lines[1] for t in of_lines.get(line, ())}
        chosen = (chosen or {t for tests in of_lines.values() for t in tests}) & self.seconds.keys()
        if len(chosen) < FEW:
            files = {test.split("::")[0] for test in chosen}
            chosen = {test for test in self.seconds if test.split("::")[0] in files}
        order: dict[str, list[str]] = {}
        for test in sorted(chosen, key=lambda t: self.seconds[t]):
            order.setdefault(test.split("::")[0], []).append(test)
        density = {file: len(tests) / sum(self.seconds[t] + 0.01 for t in tests) for file, tests in order.items()}
        package = mutant.file.split("/")[1][:4]
        return {file: order[file] for file in sorted(order, key=lambda f: (package not in f, -density[f]))}


def in_child(work: Any, limit_s: float, shown: bool = False) -> tuple[Any, float]:
    """(what work() gives, its processor seconds) in a forked process of its own group; "timeout" beyond the limit, or
    "crash". Ten times the limit may pass on a clock."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.close(read)
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit_s), int(limit_s) + 10))
        if not shown:
            nothing = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(nothing, stream)
        try:
            answer = json.dumps(work()).encode()
            with os.fdopen(write, "wb") as file:
                file.write(answer)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(write)
    os.set_blocking(read, False)
    end, answer, status = time.monotonic() + 10 * limit_s, b"", None
    while status is None:
        with contextlib.suppress(BlockingIOError):
            answer += os.read(read, 2**20)
        ended, code, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            status = code
        elif time.monotonic() > end:
            os.killpg(pid, signal.SIGKILL)
        else:
            time.sleep(0.02)
    os.set_blocking(read, True)
    with os.fdopen(read, "rb") as file:
        answer += file.read()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    seconds = usage.ru_utime + usage.ru_stime
    if answer:
        return json.loads(answer), seconds
    late = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGXCPU, signal.SIGKILL)
    return ("timeout" if late else "crash"), seconds


def pytest_of(root: Path, plugin: Chosen, *arguments: str) -> int:
    import pytest

    os.chdir(root)
    warm = "ignore::pytest.PytestAssertRewriteWarning"  # its plugins are imported already
    return int(pytest.main(["-n", "0", "-p", "no:cacheprovider", "-W", warm, *arguments], [plugin]))


def given_tests(root: Path) -> list[str]:
    return [test for test in TESTS if (root / test).exists()]


def covered(root: Path, kept: Path) -> Covered:
    """From ``kept`` if there is such a file. A test that fails without a mutant is left out."""

    def collect() -> Any:
        for file in (root / "segexp").rglob("*.py"):
            if any(file.relative_to(root).as_posix().startswith(place) for place in PLACES):
                importlib.import_module(
                    ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
                )
        plugin = Chosen()
        pytest_of(root, plugin, *given_tests(root))
        plugin.coverage.stop()
        data, lines = plugin.coverage.get_data(), {}
        for path in data.measured_files():
            of_file = {n: [t for t in tests if t] for n, tests in data.contexts_by_lineno(path).items()}
            lines[Path(path).relative_to(root).as_posix()] = of_file
        passed = {test: s for test, s in plugin.seconds.items() if test not in plugin.bad}
        print(f"{len(passed)} tests pass, {sum(passed.values()):.0f} s; left out: {sorted(plugin.bad) or 'none'}")
        return {"seconds": passed, "tests": lines}

    if not kept.exists():
        found, _ = in_child(collect, 3600, shown=True)
        kept.write_text(json.dumps(found), "utf-8")
    found = json.loads(kept.read_text("utf-8"))
    of_lines = {file: {int(n): tests for n, tests in lines.items()} for file, lines in found["tests"].items()}
    return Covered(found["seconds"], of_lines)


def tried(root: Path, mutant: Mutant, tests: Covered, budget_s: float, shown: bool = False) -> dict[str, Any]:
    """How the mutant ended: killed (by a test), import (its module, or a module of tests, does not load), timeout,
    crash, survived, or open, where the budget was spent before the last file of tests."""
    order = tests.order(mutant)

    def work() -> Any:
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        ran = 0
        for file, of_file in order.items():
            plugin = Chosen(of_file, tests.seconds)
            code = pytest_of(root, plugin, "-x", file)
            ran += plugin.ran
            if code not in (0, 5):
                return {"outcome": "killed" if code == 1 else "import", "by": plugin.failed or file, "ran": ran}
            if time.process_time() > budget_s and file != [*order][-1]:
                return {"outcome": "open", "ran": ran, "of": sum(map(len, order.values()))}
        return {"outcome": "survived", "ran": ran}

    path = root / mutant.file
    source, stat = path.read_text("utf-8"), path.stat()
    path.write_text(source[: mutant.begin] + mutant.after + source[mutant.end :], "utf-8")
    os.utime(path, (stat.st_atime, stat.st_mtime + 1000))  # compiled files of the original do not count
    try:
        found, seconds = in_child(work, 4 * budget_s, shown)
    finally:
        path.write_text(source, "utf-8")
        os.utime(path, (stat.st_atime, stat.st_mtime))
    return (found if isinstance(found, dict) else {"outcome": found}) | {"seconds": round(seconds, 1)}


# Results

LEFT = ("survived", "open")

KEPT = Path(__file__).with_suffix(".json")
"""The last record of each mutant, the one of the page; ``why`` it survived is written there by hand."""

PAGE = """# Mutation testing

Whether the tests notice a small error in the code that computes: output and hidden activations, losses, scores, and
the statistics of `segexp compare`. A mutant is one change of one expression or statement there, such as `<` to `<=`,
`a - b` to `a + b`, a number to another, a call to its argument, or an argument of a call left out; texts, types and
error messages are left alone. The sample are the {sample} mutants with the least hashes, of {every:,}, and {number} of
them ran so far, in that order but for lines that have changed since. On each ran the default tests that execute
what was changed.

{table}

**Killed**: a test failed that passes without the mutant, or a file of tests could not be loaded ({imports}), or a test
took more than ten times as long ({timeouts}). With the tests of before this was done, {before} were killed.

## Survivors

{survivors}

## How to repeat it

```text
make mutation                              # the sample; it goes on where it was stopped
python scripts/mutation.py --again         # survivors, with the tests as they are now
python scripts/mutation.py --only 17       # one mutant, and what pytest printed
python scripts/mutation.py --page          # this page, with what was seen
```
"""


def page(mutants: list[Mutant], every: int, done: dict[str, dict[str, Any]]) -> None:
    """Writes `KEPT` and docs/mutation.md."""
    records: list[dict[str, Any]] = []
    for n, mutant in enumerate(mutants):
        if seen := done.get(mutant.key):
            why = seen.get("why", "") if seen["outcome"] in LEFT else ""
            facts = {
                "n": n,
                "key": mutant.key,
                "file": mutant.file,
                "line": mutant.lines[0].start,
                "scope": mutant.scope,
            }
            facts |= {"before": mutant.before, "after": mutant.after, "first": seen["first"]}
            records.append(
                facts | {key: seen.get(key, "") for key in ("outcome", "by", "ran", "commit")} | {"why": why}
            )
    KEPT.write_text("[\n" + ",\n".join(json.dumps(record) for record in records) + "\n]\n", "utf-8")
    of_package: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        of_package.setdefault("/".join(record["file"].split("/")[:2]), []).append(record)
    rows = ["| code | mutants | killed | equivalent | other survivors |", "|---|---|---|---|---|"]
    for name, found in [*sorted(of_package.items()), ("**together**", records)]:
        left = [record for record in found if record["outcome"] in LEFT]
        equal = sum(record["why"].startswith("equivalent") for record in left)
        share = f"{len(found) - len(left)} ({100 * (len(found) - len(left)) / len(found):.0f} %)"
        rows.append(f"| {name} | {len(found)} | {share} | {equal} | {len(left) - equal} |")
    survivors = ["| where | change | why |", "|---|---|---|"]
    for record in (record for record in records if record["outcome"] in LEFT):
        change = " to ".join(
            f"`{' '.join(record[key].split())[:60]}`".replace("|", "\\|") for key in ("before", "after")
        )
        survivors.append(
            f"| {record['file'].removeprefix('segexp/')}, {record['scope']} | {change} | {record['why']} |"
        )
    texts = {
        "number": len(records), "sample": len(mutants), "every": every, "table": "\n".join(rows),
        "imports": sum(record["outcome"] == "import" for record in records),
        "timeouts": sum(record["outcome"] in ("timeout", "crash") for record in records),
        "before": sum(record["first"] not in LEFT for record in records), "survivors": "\n".join(survivors),
    }  # fmt: skip
    (REPOSITORY / "docs" / "mutation.md").write_text(PAGE.format(**texts), "utf-8")


def read(results: Path) -> dict[str, dict[str, Any]]:
    """Key -> the last record of each mutant, of `KEPT` and this file. first: how it ended at first."""
    lines = results.read_text("utf-8").splitlines() if results.exists() else []
    found: dict[str, dict[str, Any]] = {record["key"]: record for record in json.loads(KEPT.read_text("utf-8"))}
    for record in map(json.loads, lines):
        found[record["key"]] = {"first": record["outcome"]} | found.get(record["key"], {}) | record
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=120, help="processor seconds, then no other file is begun")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--only", type=int)
    parser.add_argument("--commit", default="HEAD")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--results", type=Path, default=REPOSITORY / "outputs" / "mutation.jsonl")
    given = parser.parse_args()
    revision = ["git", "rev-parse", "--short=10", given.commit]
    commit = subprocess.check_output(revision, cwd=REPOSITORY, text=True).strip()
    root = Path(tempfile.gettempdir()) / f"segexp-mutants-{commit}"
    root.mkdir(parents=True, exist_ok=True)
    archive = subprocess.check_output(["git", "archive", commit], cwd=REPOSITORY)
    subprocess.run(["tar", "-x", "-C", str(root)], input=archive, check=True)  # also over a mutant that was left there
    os.environ |= {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    os.environ.setdefault("SEGEXP_SHARED", str(REPOSITORY.parent / "shared"))
    sys.path[:] = [
        str(root),
        *(p for p in sys.path if Path(p or ".").resolve() not in (REPOSITORY, REPOSITORY / "scripts")),
    ]
    (mutants, every), done = sample(root, given.number, given.seed), read(given.results)
    if given.page:
        return page(mutants, every, done)
    for module in WARM:
        importlib.import_module(module)
    for plugin in importlib.metadata.entry_points(group="pytest11"):
        plugin.load()
    gc.freeze()  # what is imported is not looked through, or copied, in every child
    assert not any(re.match(r"segexp\b", name) for name in sys.modules)
    tests = covered(root, root / "covered.json")
    in_child(lambda: pytest_of(root, Chosen([]), *given_tests(root)), 600)  # compiles the tests
    given.results.parent.mkdir(parents=True, exist_ok=True)
    for n, mutant in sorted(enumerate(mutants), key=lambda pair: done.get(pair[1].key, {}).get("outcome") == "open"):
        before = done.get(mutant.key)
        wanted = (
            n == given.only if given.only is not None else not before or (given.again and before["outcome"] in LEFT)
        )
        if not wanted:
            continue
        record = {"n": n, "key": mutant.key, "file": mutant.file, "scope": mutant.scope, "line": mutant.lines[0].start}
        record |= {"before": mutant.before, "after": mutant.after, "commit": commit}
        record |= tried(root, mutant, tests, given.budget, shown=given.only is not None)
        print(
            json.dumps({k: record[k] for k in ("n", "outcome", "file", "line", "before", "after", "seconds")}),
            flush=True,
        )
        with given.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
