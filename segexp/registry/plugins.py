"""Plugins: files, or installed packages, with the user's own parts. Only what the user names is loaded.

A plugin uses the decorators of `segexp.plugin`. It is named on the command line (``--plugin parts.py``, or the name of
an entry point in the group ``segexp.plugins``), in the environment variable SEGEXP_PLUGINS, or by
`segexp.use_plugins`; no configuration and no record can load one. Its identity is the content of its file and of the
modules that this file imports, directly or not, from its own folder.
"""

import ast
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from segexp.errors import UsageError, first_line
from segexp.registry import REGISTRIES, adding_for, nearest

ENTRY_POINTS = "segexp.plugins"
"""The group of entry points in which an installed package offers its plugins."""

VARIABLE = "SEGEXP_PLUGINS"
"""Environment variable with plugins, separated as in PATH."""


@dataclass(frozen=True)
class Plugin:
    """A loaded plugin. name: the name of its file without suffix, or of its entry point. given: names it again, from
    any folder. files: path relative to the plugin's folder -> content, the plugin's own file first. sha256: of all."""

    name: str
    given: str
    files: Mapping[str, bytes]
    sha256: str


LOADED: dict[str, Plugin] = {}
"""Name -> plugin, in the order in which the user named them."""


def from_environment() -> list[str]:
    """The plugins that SEGEXP_PLUGINS names."""
    return [name for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]


def use(given: Sequence[str | os.PathLike[str]]) -> None:
    """Load exactly these plugins: others are removed, and one whose files have changed is loaded again.

    given: paths of files, or names of entry points. Raises UsageError for a plugin that cannot be loaded; then those
    before it stay loaded.
    """
    wanted = list(dict.fromkeys(_absolute(os.fspath(name)) for name in given))
    for plugin in list(LOADED.values()):
        if plugin.given not in wanted or _read(plugin.given).sha256 != plugin.sha256:
            _forget(plugin.name)
    for name in wanted:
        if all(plugin.given != name for plugin in LOADED.values()):
            _load(name)


def given() -> list[str]:
    """What names the loaded plugins again, in another process as well."""
    return [plugin.given for plugin in LOADED.values()]


def entry_name(name: str) -> str:
    """The name of the entry that a function or class makes: my_relu for my_relu and MyRelu."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().rstrip("_")


def names_in(path: str) -> Iterator[tuple[str, str]]:
    """(decorator, name of the entry) of what a plugin's file registers, read from its text: nothing is executed."""
    try:
        tree = ast.parse(Path(path).expanduser().read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        for decorator in node.decorator_list:
            call = decorator if isinstance(decorator, ast.Call) else None
            keywords = {k.arg: k.value for k in call.keywords} if call else {}
            given = keywords.get("name")
            name = given.value if isinstance(given, ast.Constant) else entry_name(node.name)
            yield ast.unparse(call.func if call else decorator).rpartition(".")[2], str(name)


def _absolute(name: str) -> str:
    """A path as an absolute one; the name of an entry point as it is."""
    is_path = name.endswith(".py") or os.sep in name
    return str(Path(name).expanduser().absolute()) if is_path else name


def _read(given: str) -> Plugin:
    """The plugin as its files are now, without executing them. Raises UsageError."""
    if os.sep in given:
        path, root, name = Path(given), Path(given).parent, Path(given).stem
    else:
        path, root = _installed(given)
        name = given
    try:
        files = {path.relative_to(root).as_posix(): path.read_bytes()}
        for own in _own_modules(path, root, {}):
            files.setdefault(own.relative_to(root).as_posix(), own.read_bytes())
    except OSError as error:
        raise UsageError(f"--plugin {given}: {error.strerror or error} ({error.filename})") from error
    total = hashlib.sha256()
    for own_name, content in sorted(files.items()):
        total.update(own_name.encode() + b"\0" + hashlib.sha256(content).digest())
    return Plugin(name, given, files, total.hexdigest())


def _installed(name: str) -> tuple[Path, Path]:
    """The file of an entry point's module, and the folder that holds its package. Raises UsageError."""
    offered = {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    if name not in offered:
        wrong = f"--plugin {name} is neither a file (write ./{name}.py) nor an installed plugin"
        raise UsageError(wrong + (nearest(name, offered) if offered else ""))
    spec = importlib.util.find_spec(offered[name].module)
    if spec is None or spec.origin is None:
        raise UsageError(f"--plugin {name}: the package that offers it has no module {offered[name].module}")
    path = Path(spec.origin)
    depth = offered[name].module.count(".") + (path.name == "__init__.py")
    return path, path.parents[depth]


def _own_modules(path: Path, root: Path, seen: dict[Path, None]) -> dict[Path, None]:
    """The modules below ``root`` that a file imports, directly or not, also where it imports them within functions."""
    package = path.parent.relative_to(root).parts
    for node in ast.walk(_parsed(path)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *filter(None, [node.module])])
            names = [module, *(f"{module}.{alias.name}".lstrip(".") for alias in node.names)]
        for name in names:
            # The packages of a.b.c are imported with it.
            parts = name.split(".")
            for end in range(1, len(parts) + 1):
                found = _file_of(root.joinpath(*parts[:end]), parts[0])
                if found and found != path and found not in seen:
                    seen[found] = None
                    _own_modules(found, root, seen)
    return seen


def _file_of(base: Path, top: str) -> Path | None:
    """The file of a module; None for those of Python and of segexp, which come before a plugin's folder."""
    if top in sys.stdlib_module_names or top == "segexp":
        return None
    return next((file for file in (base / "__init__.py", base.with_suffix(".py")) if file.is_file()), None)


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise UsageError(f"{path}, line {line}: the plugin is not valid Python ({first_line(error)})") from error


def _load(given: str) -> None:
    # All built-in entries first: they are no plugin's, and their names are taken.
    importlib.import_module("segexp.plugin")
    plugin = _read(given)
    if plugin.name in LOADED:
        raise UsageError(f"--plugin {given}: {LOADED[plugin.name].given} has the same name: rename one of them")
    try:
        with adding_for(plugin.name):
            module, root = _execute(plugin)
    except BaseException:
        _forget(plugin.name)
        raise
    if not any(plugin.name in registry.origins.values() for registry in REGISTRIES):
        sys.modules.pop(module.__name__, None)
        raise UsageError(f"--plugin {given} registers nothing: use the decorators of segexp.plugin")
    for name in plugin.files:
        loaded = sys.modules.get(Path(name).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"))
        where = getattr(loaded, "__file__", None)
        if where and Path(where).resolve() != (root / name).resolve():
            _forget(plugin.name)
            raise UsageError(f"--plugin {given}: {root / name} is not imported, because {where} has the same name")
    LOADED[plugin.name] = plugin


def _execute(plugin: Plugin) -> tuple[ModuleType, Path]:
    """Run the plugin's module; returns it and the folder that its files are relative to. Raises UsageError."""
    try:
        if os.sep not in plugin.given:
            path, root = _installed(plugin.given)
            point = next(p for p in importlib.metadata.entry_points(group=ENTRY_POINTS) if p.name == plugin.given)
            sys.modules.pop(point.module, None)  # what it registers may have been removed since
            return importlib.import_module(point.module), root
        path, root = Path(plugin.given), Path(plugin.given).parent
        if str(root) not in sys.path:
            sys.path.append(str(root))  # last: a plugin's modules never replace Python's or an installed package's
        for name in plugin.files:  # modules beside it may have changed since another plugin imported them
            _drop_module(root / name)
        name = f"segexp_plugin_{plugin.name}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module, root
    except UsageError as error:
        raise UsageError(f"{_where(error, path)}: {error}") from error
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"{_where(error, path)}: the plugin cannot be loaded: {type(error).__name__}: {first_line(error)}"
        ) from error


def _where(error: BaseException, path: Path) -> str:
    """The last line of the plugin's own file in the traceback."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{path}, line {lines[-1]}" if lines else str(path)


def _drop_module(path: Path) -> None:
    for name, module in list(sys.modules.items()):
        if getattr(module, "__file__", None) == str(path):
            del sys.modules[name]


def _forget(name: str) -> None:
    LOADED.pop(name, None)
    sys.modules.pop(f"segexp_plugin_{name}", None)
    for registry in REGISTRIES:
        registry.remove_plugin(name)
