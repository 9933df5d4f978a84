"""Plugins: files, or installed packages, with the user's own parts. Only what the user names is loaded.

A plugin uses the decorators of `segexp.plugin`. It is named on the command line (``--plugin parts.py``, or the name of
an entry point in the group ``segexp.plugins``), in the environment variable SEGEXP_PLUGINS, or by
`segexp.use_plugins`; no configuration and no record can load one. Its identity is the content of its file and of the
modules that this file imports, directly or not, from its own folder. What is executed is what was hashed: these modules
are imported from the content that was read, not from their files or from `__pycache__`.
"""

import ast
import functools
import hashlib
import importlib
import importlib.util
import operator
import os
import pkgutil
import re
import shlex
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from typing import Any, NoReturn

from segexp.errors import UsageError, first_line, line_in, out_of_memory, unexpected
from segexp.registry import REGISTRIES, adding_for, nearest

ENTRY_POINTS = "segexp.plugins"
"""The group of entry points in which an installed package offers its plugins."""

VARIABLE = "SEGEXP_PLUGINS"
"""Environment variable with plugins, separated as in PATH."""


@dataclass(frozen=True)
class Plugin:
    """A loaded plugin. name: the name of its file without suffix, or of its entry point. given: names it again, from
    any folder. module: the name under which its file is imported. root: the folder that ``files`` are relative to.
    files: path -> content, the plugin's own file first. sha256: of all files."""

    name: str
    given: str
    module: str
    root: Path
    files: Mapping[str, bytes]
    sha256: str

    @functools.cached_property
    def modules(self) -> dict[str, str]:
        """Name of a module -> its file."""
        own = next(iter(self.files))
        return {self.module if file == own else _module_of(file): file for file in self.files}

    @property
    def paths(self) -> list[str]:
        """Where its files are."""
        return [str(self.root / file) for file in self.files]

    @property
    def is_installed(self) -> bool:
        """Whether it is the entry point of an installed package."""
        return os.sep not in self.given


LOADED: dict[str, Plugin] = {}
"""Name -> plugin, in the order in which the user named them; the last one may be being loaded."""


def from_environment() -> list[str]:
    return [name for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]


def use(given: Iterable[str | os.PathLike[str]]) -> None:
    """Load exactly these plugins: others are removed, and one whose files have changed is loaded again.

    given: paths of files, or names of entry points. Raises UsageError for a plugin that cannot be loaded; then those
    before it stay loaded.
    """
    wanted = list(dict.fromkeys(_absolute(os.fspath(name)) for name in given))
    for plugin in list(LOADED.values()):
        if plugin.given not in wanted or _read(plugin.given).sha256 != plugin.sha256:
            _forget(plugin)
    for name in wanted:
        if all(plugin.given != name for plugin in LOADED.values()):
            _load(_read(name))


def given() -> dict[str, str]:
    """What names the loaded plugins again, in another process as well -> their hashes."""
    return {plugin.given: plugin.sha256 for plugin in LOADED.values()}


def in_plugin(error: BaseException) -> str:
    """One line for an exception in the code of a loaded plugin, "" for any other."""
    for plugin in LOADED.values():
        if where := line_in(error, plugin.paths):
            what = f"{where}: {type(error).__name__}: {first_line(error)}"
            return f"{what}; `segexp check-plugin {shlex.quote(plugin.given)}` says more"
    return ""


def explained(error: BaseException) -> str:
    """One line for an unexpected error: `out_of_memory`, `in_plugin`, else where its traceback is. With plugins it may
    come from what one of their parts gave."""
    if lacking := out_of_memory(error):
        return lacking
    if not LOADED:
        return unexpected(error)
    checks = ", ".join(f"`segexp check-plugin {shlex.quote(plugin.given)}`" for plugin in LOADED.values())
    return in_plugin(error) or unexpected(error, f"see whether your own part is right with {checks}")


def flags() -> str:
    """The loaded plugins as words for a command line, " --plugin FILE"."""
    return "".join(f" --plugin {shlex.quote(name)}" for name in given())


@contextmanager
def no_exit() -> Iterator[None]:
    """Raise UsageError where a loaded plugin ends the process, as with sys.exit(), which would look like a success."""
    try:
        yield
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        where = line_in(error, [path for plugin in LOADED.values() for path in plugin.paths])
        *_, (innermost, _) = traceback.walk_tb(error.__traceback__)
        # A launcher's signal handler may interrupt the plugin's code to end the process.
        if not where or "submitit" in innermost.f_code.co_filename:
            raise
        raise UsageError(f"{where}: {type(error).__name__}: a plugin must not end the process") from error


_LEAVE = os._exit


def _no_leaving(pid: int) -> Any:
    """`os._exit` for a process in which plugins are loaded: where one of them calls it, `no_exit` sees it."""

    def leave(status: int) -> NoReturn:
        files = [path for plugin in LOADED.values() for path in plugin.paths]
        if os.getpid() == pid and sys._getframe(1).f_code.co_filename in files:  # not in a process of its own
            raise SystemExit(status)
        _LEAVE(status)

    return leave


def entry_name(name: str) -> str:
    """The name of the entry that a function or class makes: my_relu for my_relu and MyRelu."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().rstrip("_")


GROUPS = {"output_activation": "activation", "architecture": "model", "score": "metrics.scores"}
"""Decorator of `segexp.plugin` -> the group of its entries, where that has another name."""

CALL_SITE = ("channels", "channel_dim")
"""Parameters that a hidden activation may have: the number of channels of its call site, and their dimension, 1 or -1.
Like `COMMON` segexp passes them, and they are no options."""

COMMON = ("in_channels", "classes", "encoder_name", "encoder_weights")
"""Parameters that an architecture may have."""


@dataclass(frozen=True)
class Part:
    """What the text of a plugin says of an entry: how completion knows it. options: name -> the words it takes."""

    group: str
    name: str
    aliases: tuple[str, ...]
    options: Mapping[str, tuple[str, ...]]


def parts_in(name: str) -> list[Part]:
    """What a plugin registers, read from its files: nothing is executed. Empty where they cannot be read."""
    try:
        texts = [text for file, text in _read(_absolute(name)).files.items() if file.endswith(".py")]
        nodes = (node for text in texts for node in ast.walk(ast.parse(text)))
        made = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        parts = [_part(node, decorator) for node in made for decorator in node.decorator_list]
    except (UsageError, RecursionError, MemoryError):
        return []
    return [part for part in parts if all(name.isidentifier() for name in (part.name, *part.aliases))]


def _part(node: ast.FunctionDef | ast.ClassDef, decorator: ast.expr) -> Part:
    facts = {k.arg: k.value for k in decorator.keywords} if isinstance(decorator, ast.Call) else {}
    kind = ast.unparse(decorator.func if isinstance(decorator, ast.Call) else decorator).rpartition(".")[2]
    inits = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
    parameters = node if isinstance(node, ast.FunctionDef) else inits[0] if inits else None
    options = {
        p.arg: tuple(
            str(word.value)
            for literal in (ast.walk(p.annotation) if p.annotation else ())
            if isinstance(literal, ast.Subscript) and ast.unparse(literal.value).endswith("Literal")
            for word in ast.walk(literal.slice)
            if isinstance(word, ast.Constant)
        )
        for p in (parameters.args.kwonlyargs if parameters else ())
        if p.arg not in CALL_SITE + COMMON
    }
    try:  # name and aliases are known where the decorator states them as text
        stated = {key: ast.literal_eval(facts[key]) for key in ("name", "aliases") if key in facts}
        aliases = tuple(map(str, stated.get("aliases", ())))
    except (ValueError, TypeError):
        stated, aliases = {}, ()
    return Part(GROUPS.get(kind, kind), str(stated.get("name", entry_name(node.name))), aliases, options)


def _absolute(name: str) -> str:
    """A path as an absolute one, which a file has one of, links followed; the name of an entry point as it is."""
    return os.path.realpath(Path(name).expanduser()) if name.endswith(".py") or os.sep in name else name


def _read(given: str) -> Plugin:
    """The plugin as its files are now, without executing them. Raises UsageError."""
    if os.sep in given:
        path = Path(given)
        root, name, module = path.parent, path.stem, re.sub(r"\W", "_", f"segexp_plugin_{path.stem}")
    else:
        path, root, module = _installed(given)
        name = given
    *packages, _ = module.split(".")
    try:
        if path.suffix != ".py" or not path.is_file():
            raise _no_file(given)
        files = {path.relative_to(root).as_posix(): path.read_bytes()}
        seen: dict[Path, None] = {}
        _find_modules(".".join(packages), root, "", seen)
        _find_imports(path, root, "" if os.sep in given else module.partition(".")[0], seen)
        for own in seen:
            files.setdefault(own.relative_to(root).as_posix(), own.read_bytes())
    except OSError as error:
        raise UsageError(f"--plugin {given}: cannot read {error.filename}: {error.strerror or error}") from error
    total = hashlib.sha256()
    for own_name, content in sorted(files.items()):
        total.update(own_name.encode() + b"\0" + hashlib.sha256(content).digest())
    return Plugin(name, given, module, root, files, total.hexdigest())


def _no_file(given: str) -> UsageError:
    path = Path(given)
    what = "is a folder" if path.is_dir() else "does not end in .py" if path.exists() else "does not exist"
    return UsageError(f"--plugin {given} {what}: name the Python file with your parts")


def _installed(name: str) -> tuple[Path, Path, str]:
    """The file of an entry point's module, the folder that holds its package, and the module's name. Nothing of it is
    executed. Raises UsageError."""
    from importlib.metadata import entry_points

    offered = {point.name: point.module for point in entry_points(group=ENTRY_POINTS)}
    if name not in offered:
        if Path(name).exists():
            raise _no_file(name)
        wrong = f"--plugin {name} is neither a file (write ./{name}.py) nor an installed plugin"
        raise UsageError(wrong + (nearest(name, offered) if offered else ""))
    module = offered[name]
    spec = _elsewhere(module.partition(".")[0])
    if spec is not None:
        packages = [Path(place).parent for place in spec.submodule_search_locations or ()]
        for root in packages or [Path(spec.origin or "").parent]:
            if file := _file_of(root.joinpath(*module.split("."))):
                return file, root, module
    raise UsageError(f"--plugin {name}: the package that offers it has no module {module}: install it again")


def _elsewhere(name: str) -> ModuleSpec | None:
    """What Python would import under a name without a dot if no plugin were loaded."""
    found = (finder.find_spec(name, None) for finder in sys.meta_path if finder is not _Finder)
    return next((spec for spec in found if spec is not None), None)


def _find_imports(path: Path, root: Path, top: str, seen: dict[Path, None]) -> None:
    """Add to ``seen`` the modules below ``root`` that a file imports, directly or not, also within functions.

    top: the package that they belong to; "" for any.
    """
    package = path.parent.relative_to(root).parts
    for node in ast.walk(_parsed(path)) if path.suffix == ".py" else ():
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = _resolved("." * node.level + (node.module or ""), package)
            names = [module, *(f"{module}.{alias.name}".lstrip(".") for alias in node.names)]
        elif isinstance(node, ast.Call) and re.search(r"\b(import_module|__import__)$", ast.unparse(node.func)):
            first = [one.value for one in node.args[:1] if isinstance(one, ast.Constant)]
            names = [_resolved(value, package) for value in first if isinstance(value, str)]
        for name in names:
            _find_modules(name, root, top, seen)


def _find_modules(name: str, root: Path, top: str, seen: dict[Path, None]) -> None:
    """Add the module of this name, the packages that are imported with it, and what they import."""
    parts = name.split(".")
    if parts[0] in ("", "segexp") or top not in ("", parts[0]):
        return
    for end in range(1, len(parts) + 1):
        found = _file_of(root.joinpath(*parts[:end]))
        if found and found not in seen:
            seen[found] = None
            _find_imports(found, root, top, seen)


def _resolved(module: str, package: tuple[str, ...]) -> str:
    """A module that is named relative to a package, as ..other, by its whole name."""
    name = module.lstrip(".")
    level = len(module) - len(name)
    return ".".join([*(package[: len(package) - level + 1] if level else ()), *filter(None, [name])])


def _file_of(base: Path) -> Path | None:
    """The file of a module: of a package, of Python's source, or compiled."""
    files = [base / "__init__.py", *(base.parent / f"{base.name}{end}" for end in (".py", *EXTENSION_SUFFIXES))]
    return next((file for file in files if file.is_file()), None)


def _module_of(file: str) -> str:
    return file.removesuffix(".py").partition(".")[0].replace("/", ".").removesuffix(".__init__")


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or 1
        what = getattr(error, "msg", None) or first_line(error)  # msg: without "(<unknown>, line 1)"
        raise UsageError(f"{path}, line {line}: the plugin is not valid Python ({what})") from error


def _load(plugin: Plugin) -> None:
    """Execute a plugin. Raises UsageError; then nothing of it stays."""
    # All built-in entries first: they are no plugin's, and their names are taken.
    importlib.import_module("segexp.plugin")
    for other in LOADED.values():
        if plugin.name == other.name or plugin.module == other.module:
            same = "name" if plugin.name == other.name else f"module name {plugin.module}"
            raise UsageError(f"--plugin {plugin.given}: {other.given} has the same {same}: rename one of them")
    _check_names(plugin)
    _forget(plugin)
    LOADED[plugin.name] = plugin
    os._exit = _no_leaving(os.getpid())
    try:
        with adding_for(plugin.name):
            _import_untouched(plugin)
        if not any(plugin.name in registry.origins.values() for registry in REGISTRIES):
            raise UsageError(f"--plugin {plugin.given} registers nothing: use the decorators of segexp.plugin")
    except BaseException as error:
        _forget(plugin)
        where = line_in(error, plugin.paths)
        if isinstance(error, UsageError):
            raise UsageError(_shared(error, plugin) or (f"{where}: {error}" if where else str(error))) from error
        if not isinstance(error, KeyboardInterrupt):
            what = f"the plugin cannot be loaded: {type(error).__name__}: {first_line(error)}"
            raise UsageError(f"{where or plugin.given}: {what}") from error
        raise


def _shared(error: UsageError, plugin: Plugin) -> str:
    """One line where a module that another plugin has as well registers its entries again, "" otherwise."""
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    executed = {code.co_filename for code in frames if code.co_name == "<module>"}.intersection(plugin.paths)
    for other in LOADED.values():
        for file in sorted(executed.intersection(other.paths)):
            what = f"--plugin {plugin.given}: {file} registers entries and belongs to the plugin {other.name} too"
            return f"{what}: name one file that imports both plugins, or move these entries to a file of one of them"
    return ""


_CALLS = {
    **{f"set_{name}": f"get_{name}" for name in ("default_dtype", "default_device", "num_threads")},
    **{"set_float32_matmul_precision": "get_float32_matmul_precision", "set_grad_enabled": "is_grad_enabled"},
    "use_deterministic_algorithms": "are_deterministic_algorithms_enabled",
}
_PLACES = (
    *("backends.mkldnn.enabled", "backends.cudnn.enabled", "backends.cudnn.benchmark", "backends.cudnn.deterministic"),
    *("backends.cudnn.allow_tf32", "relu", "nn.functional.relu", "nn.ReLU.forward"),
)
"""Settings of torch that runs without an entry of the plugin depend on, too: what sets them and what reads them."""


def _import_untouched(plugin: Plugin) -> None:
    """Execute the plugin's module. Raises UsageError, with the setting or file, where it changes what other runs depend
    on (settings of torch and built-in entries, which are restored), or imports files that its hash does not cover."""
    import torch

    def settings() -> dict[str, Any]:
        found = {name: getattr(torch, reader)() for name, reader in _CALLS.items()}
        return found | {name: operator.attrgetter(name)(torch) for name in _PLACES}

    before, built_in = settings(), [(registry, name, registry[name]) for registry in REGISTRIES for name in registry]
    modules, places = set(sys.modules), list(sys.path)
    try:
        importlib.import_module(plugin.module)
    finally:
        sys.path[:] = [place for place in sys.path if place in places or not _is_below(place, plugin.root)]
        changed = [f"torch.{name}" for name, value in settings().items() if value != before[name]]
        for full in list(changed):
            owner, _, name = full.rpartition(".")
            value, place = before[full.removeprefix("torch.")], pkgutil.resolve_name(owner)
            getattr(torch, name)(value) if name in _CALLS else setattr(place, name, value)
        for registry, name, entry in built_in:
            if registry.get(name) is not entry:
                changed.append(f"{registry.group}={name}")
                registry[name] = entry
    if changed:
        raise UsageError(f"--plugin {plugin.given} changes {', '.join(changed)}, and with it runs that do not use it")
    for name in set(sys.modules) - modules - set(plugin.modules):
        file = getattr(sys.modules[name], "__file__", None) or ""
        foreign = name.partition(".")[0] in _NOT_OWN or _is_installed_file(file)
        if file and file not in plugin.paths and not foreign and _is_below(file, plugin.root):
            del sys.modules[name]
            cure = "import it by its path from the plugin's folder, as in `from folder import module`"
            raise UsageError(f"--plugin {plugin.given} imports {file}, which its hash does not cover: {cure}")


def _is_below(path: str, folder: Path) -> bool:
    return Path(path).resolve().is_relative_to(folder.resolve())


def _is_installed_file(path: str) -> bool:
    return re.search(r"[\\/](site|dist)-packages[\\/]", path) is not None


def _check_names(plugin: Plugin) -> None:
    """Raise UsageError where a module of the plugin would take the name of another one, in use or installed."""
    for module, file in plugin.modules.items():
        name, ours = module.partition(".")[0], plugin.root / file
        other: str | None = None
        if owner := next((p for p in LOADED.values() if p.root != plugin.root and name in p.modules), None):
            other = str(owner.root / owner.modules[name])
        elif name in sys.stdlib_module_names:
            other = "Python's own module"
        elif not plugin.is_installed:
            spec = getattr(sys.modules.get(name), "__spec__", None) or _elsewhere(name)
            other = spec.origin if spec is not None else None
            in_use = name in sys.modules or _is_installed_file(other or "")
            if not in_use or (other and _is_below(other, plugin.root)):
                other = None
        if other:
            raise UsageError(f"--plugin {plugin.given}: {ours} has the same name as {other}: rename it")


class _Loader(SourceFileLoader):
    """Executes the content that was hashed."""

    def __init__(self, name: str, path: str, content: bytes) -> None:
        super().__init__(name, path)
        self.content = content

    def get_code(self, fullname: str) -> Any:
        return compile(self.content, self.path, "exec", dont_inherit=True)


class _Finder:
    """Imports the modules of the loaded plugins, and nothing else of their folders for them."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        for plugin in LOADED.values():
            if name in plugin.modules:
                file = plugin.modules[name]
                where, content = str(plugin.root / file), plugin.files[file]
                loader = _Loader(name, where, content) if file.endswith(".py") else None
                return importlib.util.spec_from_file_location(name, where, loader=loader)
            if not plugin.is_installed and any(module.startswith(f"{name}.") for module in plugin.modules):
                space = ModuleSpec(name, None, is_package=True)
                space.submodule_search_locations = [str(plugin.root.joinpath(*name.split(".")))]
                return space
            top = name.partition(".")[0]
            foreign = top != plugin.module.partition(".")[0] if plugin.is_installed else top in _NOT_OWN
            hidden = None if foreign else _file_of(plugin.root.joinpath(*name.split(".")))
            if hidden:
                found = PathFinder.find_spec(name, path)
                if (found is None or found.origin == str(hidden)) and _is_running(plugin):
                    known = hidden.relative_to(plugin.root).as_posix() in plugin.files  # the file of the plugin itself
                    cure = "move what others import to another file" if known else "write an import statement for it"
                    raise ModuleNotFoundError(f"{hidden} cannot be imported so: {cure}", name=name)
        return None


_NOT_OWN = {"segexp", *sys.stdlib_module_names}

sys.meta_path.insert(0, _Finder)


def _is_running(plugin: Plugin) -> bool:
    """Whether a function of the plugin's files waits for what is being imported."""
    return any(frame.f_code.co_filename in plugin.paths for frame, _ in traceback.walk_stack(None))


def _forget(plugin: Plugin) -> None:
    LOADED.pop(plugin.name, None)
    for name in plugin.modules:
        sys.modules.pop(name, None)
    for registry in REGISTRIES:
        registry.remove_plugin(plugin.name)
