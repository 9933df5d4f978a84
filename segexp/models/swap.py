"""Replace the network's hidden activations by another one, at every call site, and verify that none was missed.

Replacing modules by class would miss functions called in a forward method and leave shared modules shared. Therefore a
forward pass is traced (`segexp.models.trace`), every call site gets its own module, and a second trace is audited: each
activation must be a replacement or a gate (squeeze-and-excitation, attention). Any other has escaped, an error.
"""

import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from segexp.activations.hidden import HIDDEN_ACTIVATIONS, Scope
from segexp.errors import UsageError, first_line
from segexp.models.trace import ACTIVATION_CLASSES, ATTENTION_CLASSES, FAILURES, Application, Trace, has_class, trace
from segexp.registry.plugins import LOADED, in_plugin

BARE = "hidden_calls"  # name of the submodule that holds the replacements of functions called in a module's own forward

IN_PLACE = frozenset([torch.relu_, torch.Tensor.relu_, F.leaky_relu_, F.elu_, F.selu_, F.celu_])

FUNCTIONS = IN_PLACE.union(
    [F.relu, torch.relu, torch.Tensor.relu, F.leaky_relu, F.elu, F.selu, torch.selu, F.celu, torch.celu],
    [F.gelu, F.silu, F.mish, F.hardswish],
)
"""Functions that are always a hidden activation. tanh, softplus or relu6 can also be part of another one (mish, a hard
sigmoid), so they are not replaced and count as escaped."""

SIGMOIDS = frozenset([torch.sigmoid, torch.Tensor.sigmoid, F.sigmoid])
PRODUCTS = frozenset([torch.mul, torch.Tensor.mul, torch.Tensor.mul_, torch.Tensor.__mul__, torch.Tensor.__rmul__])

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
"""Attributes in which torch stores the forward hooks of a module."""


class CallSites(torch.nn.ModuleList):
    """Replacement of an activation module: ``modules`` has one per call of a forward pass, used in turn."""

    def __init__(self, modules: Iterable[torch.nn.Module]) -> None:
        super().__init__(modules)
        self.turn = 0
        self.guarded = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the module of the current call."""
        module = self[self.turn]
        self.turn = (self.turn + 1) % len(self)
        if not self.guarded:
            return module(x)
        # The functions inside this module must not be replaced by an outer `_Redirect`.
        with torch._C.DisableTorchFunction():
            return module(x)


class _Redirect(TorchFunctionMode):
    """Redirects calls of activation functions to call sites, while a module's forward runs."""

    def __init__(self, sites: CallSites) -> None:
        super().__init__()
        self.sites = sites
        self.argument: Any = None
        self.weight: Any = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in FUNCTIONS:
            x = args[0] if args else kwargs["input"]
            in_place = func in IN_PLACE or kwargs.get("inplace", any(a is True for a in args[1:]))
            # The caller may continue to use its own tensor.
            return x.copy_(self.sites(x.clone())) if in_place else self._own(x)
        if func in PRODUCTS and self._is_swish(args):
            in_place = func is torch.Tensor.mul_
            return args[0].copy_(self.sites(self.argument.clone())) if in_place else self._own(self.argument)
        result = func(*args, **kwargs)
        if func in SIGMOIDS:
            self.argument, self.weight = args[0] if args else kwargs["input"], result
        return result

    def _own(self, x: torch.Tensor) -> torch.Tensor:
        """The activation of x, as a tensor that the caller may change in place, though the backward pass needs it."""
        y: torch.Tensor = self.sites(x)
        return y.clone() if y.requires_grad else y

    def _is_swish(self, factors: Any) -> bool:
        """Whether these are x and sigmoid(x)."""
        return self.weight is not None and {id(f) for f in factors} == {id(self.argument), id(self.weight)}


class _Redirected(torch.nn.Module):
    """Mixed into the class of a module that calls activation functions. A class, so that the module can be copied."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _Redirect(getattr(self, BARE)):
            return super().forward(*args, **kwargs)


@dataclass(frozen=True)
class SwapReport:
    """The activations in a forward pass of the finished network.

    replaced: call sites of the chosen activation. functions: how many of them were function calls. modules: replaced
    modules of the architecture. shared_split: modules that served several call sites. native: unchanged activations
    outside the scope. gates_kept: gates of squeeze-and-excitation and of attention. unreached: replaced modules that
    the pass never calls. escaped: operator and class of a missed activation -> number.
    """

    activation: str
    scope: str
    replaced: int
    functions: int
    modules: int
    shared_split: int
    native: int
    gates_kept: int
    unreached: int
    escaped: dict[str, int]

    def line(self) -> str:
        """One line for the terminal."""
        if self.activation == "native":
            return f"hidden activations: {self.native} call sites, native; {self.gates_kept} gates"
        return (
            f"hidden activations: {self.replaced} call sites replaced by {self.activation} ({self.scope}), "
            f"{self.shared_split} shared modules split, {self.gates_kept} gates kept, {self.native} left native, "
            f"{sum(self.escaped.values())} escaped"
        )


@dataclass(frozen=True)
class Swap:
    """The requested swap, stored in the network's attribute ``swap`` for audits."""

    activation: str
    scope: Scope
    modules: int
    shared_split: int

    def covers(self, module: str) -> bool:
        """Whether the module at this path is in the scope."""
        in_encoder = module == "encoder" or module.startswith("encoder.")
        return self.activation != "native" and self.scope in ("both", "encoder" if in_encoder else "decoder")


def swap_hidden(
    network: torch.nn.Module,
    activation: str,
    make: Callable[..., torch.nn.Module],
    scope: Scope,
    in_channels: int,
    size: int,
    seen: Trace | None = None,
) -> None:
    """Replace, in place, every hidden activation of the scope.

    make: makes the module of a call site from its ``channels`` and ``channel_dim`` (see `Application`).
    in_channels, size: of the traced images, size x size pixels. seen: a trace of the unchanged network, if available.
    """
    asked = Swap(activation, scope, 0, 0)
    seen = seen or trace(network, in_channels, size)
    applied = [a for a in seen.applications if asked.covers(a.module)]
    made: dict[str, list[torch.nn.Module]] = defaultdict(list)
    for site in applied:
        if site.kind in ("native", "function"):
            made[site.module].append(make(channels=site.channels, channel_dim=site.channel_dim))
    instances = Counter(a.instance for a in applied if a.kind == "native")
    replaced = _replace_modules(network, "", asked, lambda path: CallSites(made[path] or [make()]))
    for name in dict.fromkeys(a.module for a in applied if a.kind == "function"):
        _redirect(network.get_submodule(name), CallSites(made[name]))
    swap: Any = Swap(activation, scope, replaced, sum(number > 1 for number in instances.values()))
    network.swap = swap
    network.register_forward_pre_hook(_first_turn)


def _replace_modules(parent: torch.nn.Module, path: str, asked: Swap, replacement: Callable[[str], CallSites]) -> int:
    """Replace the activation modules below ``parent``, one per path; returns their number."""
    replaced = 0
    made: dict[torch.nn.Module, CallSites] = {}
    # named_children names a shared module once, _modules every time.
    for attribute, child in list(parent._modules.items()):
        if child is None:
            continue
        below = f"{path}.{attribute}".lstrip(".")
        if not has_class(child, ACTIVATION_CLASSES):
            replaced += _replace_modules(child, below, asked, replacement)
        elif asked.covers(below) and not has_class(parent, ATTENTION_CLASSES):
            # If a parent has one module under several names, a trace shows its calls under the first.
            if child not in made:
                made[child] = replacement(below)
                # Some encoders read feature maps by hooks on activations.
                for hooks in HOOKS:
                    setattr(made[child], hooks, getattr(child, hooks))
            setattr(parent, attribute, made[child])
            replaced += 1
    return replaced


def _redirect(module: torch.nn.Module, sites: CallSites) -> None:
    for inner in module.modules():
        if isinstance(inner, CallSites):
            inner.guarded = True
    sites.guarded = True
    module.add_module(BARE, sites)
    cls = type(module)
    module.__class__ = type(cls.__name__, (_Redirected, cls), {"__module__": cls.__module__})


def _first_turn(network: torch.nn.Module, inputs: Any) -> None:
    """Reset the call sites, in case the previous pass was interrupted."""
    for module in network.modules():
        if isinstance(module, CallSites):
            module.turn = 0


def audit(
    network: torch.nn.Module, in_channels: int, size: int, seen: Trace | None = None
) -> tuple[SwapReport, list[Application]]:
    """Classify every activation of a forward pass, in training and in evaluation mode.

    seen: a trace in training mode, if available. Returns the report and the call sites in order (replaced, native and
    functions).
    """
    asked: Any = getattr(network, "swap", Swap("native", "both", 0, 0))
    # A network may behave differently in evaluation mode; without a swap that does not matter.
    try:
        passes = [(seen or trace(network, in_channels, size)).applications]
        if asked.activation != "native":
            passes.append(trace(network, in_channels, size, training=False).applications)
    except FAILURES as error:
        origin = HIDDEN_ACTIVATIONS.origins.get(asked.activation)
        if origin is None or in_plugin(error):
            raise
        cure = f"`segexp check-plugin {shlex.quote(LOADED[origin].given)}` tests it"
        failure = first_line(error)[:200]
        raise UsageError(f"the network fails with hidden_activation={asked.activation}: {failure}; {cure}") from error
    escaped: Counter[str] = Counter()
    for applied in passes:
        missed = [a for a in applied if a.kind in ("native", "function") and asked.covers(a.module)]
        escaped |= Counter(
            f"{' and '.join(dict.fromkeys(a.operators)) or 'an activation'} in {a.class_name} "
            f"({a.module or 'the network'})"
            for a in missed
        )
        # Each call site must be used exactly once.
        for name, number in Counter(a.module for a in applied if a.kind == "replaced").items():
            have = len(cast(CallSites, network.get_submodule(name)))
            if number != have:
                escaped |= Counter([f"{number} calls of the {have} call sites of {name}"])
    sites = [a for a in passes[0] if a.kind != "gate"]
    called = {a.module for a in sites}
    report = SwapReport(
        activation=asked.activation,
        scope=asked.scope,
        replaced=sum(a.kind == "replaced" for a in sites),
        functions=sum(a.kind == "replaced" and a.module.split(".")[-1] == BARE for a in sites),
        modules=asked.modules,
        shared_split=asked.shared_split,
        native=sum(a.kind in ("native", "function") and not asked.covers(a.module) for a in sites),
        gates_kept=sum(a.kind == "gate" for a in passes[0]),
        unreached=sum(isinstance(m, CallSites) and name not in called for name, m in network.named_modules()),
        escaped=dict(escaped),
    )
    return report, sites


def check_closed(report: SwapReport, what: str, cure: str = "use another backbone") -> None:
    """Raise UsageError with the network and the operators if an activation has escaped the swap."""
    if not report.escaped:
        return
    missed = "; ".join(f"{number} x {where}" for where, number in list(report.escaped.items())[:4])
    more = f" and {len(report.escaped) - 4} more" if len(report.escaped) > 4 else ""
    raise UsageError(
        f"hidden_activation={report.activation} cannot replace every activation of {what}; these would remain: "
        f"{missed}{more}; {cure}, hidden_activation=native, or another hidden_activation.scope"
    )
