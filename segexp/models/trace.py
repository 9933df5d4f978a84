"""One forward pass, watched: every activation that is applied, where, and which layers feed it.

The pass runs on a copy of the network, on the meta device where the network allows it, so that only shapes are
computed. Operators are seen below the modules (`TorchDispatchMode`), so that an activation is seen however it is
written: as a module, as a function, in place, or as x * sigmoid(x). What has no operator of its own (x / (1 + |x|),
also as F.softsign, or a choice by torch.where) cannot be told from other arithmetic.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from segexp.data.seeds import torch_seeded
from segexp.models.architectures import MIN_BATCH

Kind = Literal["replaced", "native", "function", "gate"]
"""What applies an activation: a module that segexp put there, a module of a known class, a bare function, or a gate."""


def _words(text: str, prefix: str = "") -> frozenset[str]:
    return frozenset(prefix + word for word in text.split())


_TORCH = "torch.nn.modules.activation."
_TIMM = "timm.layers.activations."
_TIMM_ME = "timm.layers.activations_me."

ACTIVATION_CLASSES = (
    _words("ReLU ReLU6 LeakyReLU PReLU RReLU ELU CELU SELU GELU SiLU Mish Hardswish Softplus Tanh Hardtanh", _TORCH)
    | _words("LogSigmoid Softsign Softshrink Hardshrink Tanhshrink Threshold", _TORCH)
    | _words("Swish Mish Tanh HardSwish HardMish PReLU GELU GELUTanh QuickGELU", _TIMM)
    | _words("SwishMe MishMe HardSwishMe HardMishMe", _TIMM_ME)
    | _words("StarReLU SquaredReLU", "timm.models.metaformer.")
)
"""Modules that are a hidden activation, by their full names: subclasses count as well."""

GATE_CLASSES = (
    _words("Sigmoid Hardsigmoid Softmax Softmax2d Softmin LogSoftmax GLU MultiheadAttention", _TORCH)
    | _words("Sigmoid HardSigmoid", _TIMM)
    | _words("HardSigmoidMe", _TIMM_ME)
)
"""Modules that weigh features (squeeze and excitation, attention): they stay."""

ATTENTION_CLASSES = _words("efficientvit_mit.LiteMLA mobilevit.LinearSelfAttention", "timm.models.")
"""Attention whose kernel is a rectifier: what stands directly in it is part of the attention, and stays."""

ACTIVATION_OPERATORS = _words(
    "relu relu6 threshold leaky_relu prelu _prelu_kernel rrelu rrelu_with_noise elu celu selu gelu silu mish hardswish "
    "softplus tanh hardtanh log_sigmoid log_sigmoid_forward softshrink hardshrink atan erf sin maximum "
    "_transformer_encoder_layer_fwd"
)

GATE_OPERATORS = _words("sigmoid hardsigmoid softmax _softmax _safe_softmax _log_softmax glu")

AFFINE = _words("mul add sub rsub neg div clone detach alias _to_copy")
"""Operators that change one tensor of the image by weights or numbers alone: x and 1.7 x + b have one root."""

WEIGHING = _words("mul bmm baddbmm matmul mm addcmul")
"""Operators by which a gate weighs features."""

FAILURES = (ValueError, RuntimeError, TypeError, AssertionError, IndexError)
"""What networks raise for images that they cannot take."""

NORMS = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm")


@dataclass(frozen=True)
class Feed:
    """A layer (convolution or linear) whose output reaches an activation without another activation in between."""

    layer: str
    normalised: bool


@dataclass
class Application:
    """One activation as the pass applied it.

    module: path of the module that applied it, from the module that called it: one module may have several paths.
    instance: its first path, the same for all. turn: how many applications at this path came before. class_name: the
    module's class. operators: what was computed. feeds: the layers before it. channel_dim: dimension of its channels.
    """

    module: str
    instance: str
    turn: int
    kind: Kind
    class_name: str
    operators: list[str] = field(default_factory=list)
    feeds: tuple[Feed, ...] = ()
    channel_dim: int = 1


@dataclass(frozen=True)
class Trace:
    """The activations of a forward pass in order, and the shape of what came out."""

    applications: list[Application]
    output_shape: tuple[int, ...]


def trace(
    network: torch.nn.Module,
    in_channels: int,
    size: int,
    is_replacement: Callable[[torch.nn.Module], bool],
    *,
    training: bool = True,
) -> Trace:
    """Watch a forward pass of two images of size x size pixels. The network and the random generators stay as they are.

    is_replacement: tells the modules that segexp put in place of an activation. Raises what the network raises
    (one of `FAILURES`) when it cannot take such images.
    """
    try:
        return _traced(network, in_channels, size, is_replacement, training, "meta")
    except FAILURES:
        # What cannot be had from shapes alone is tried with numbers.
        return _traced(network, in_channels, size, is_replacement, training, "cpu")


def _traced(
    network: torch.nn.Module,
    in_channels: int,
    size: int,
    is_replacement: Callable[[torch.nn.Module], bool],
    training: bool,
    device: str,
) -> Trace:
    watched = copy.deepcopy(network).to(device).train(training)
    images_NCHW = torch.zeros(MIN_BATCH, in_channels, size, size, device=device)
    watch = _Watch(watched, is_replacement, images_NCHW)
    with torch_seeded(0, "probe"), torch.no_grad(), watch:
        output = watched(images_NCHW)
    watch.finish()
    return Trace(watch.applications, tuple(output.shape))


def has_class(module: torch.nn.Module, names: Iterable[str]) -> bool:
    """Whether the module's class, or one it derives from, has one of these full names."""
    return any(f"{c.__module__}.{c.__qualname__}" in names for c in type(module).__mro__)


@dataclass
class _Gate:
    """A sigmoid, until it is seen what becomes of it; root: of its argument. A softmax always counts as attention."""

    application: Application
    root: int
    read: bool = False
    weighs: bool = False


@dataclass(frozen=True)
class _Origin:
    """Where a tensor comes from: layers since the last activation, root of its affine functions, gates it carries."""

    feeds: dict[str, bool]
    root: int
    gates: tuple[_Gate, ...] = ()


class _Watch(TorchDispatchMode):
    """Follows every tensor that comes from the image."""

    def __init__(
        self, network: torch.nn.Module, is_replacement: Callable[[torch.nn.Module], bool], images_NCHW: torch.Tensor
    ) -> None:
        super().__init__()
        self.applications: list[Application] = []
        self._names = {module: name for name, module in network.named_modules()}
        self._running: list[torch.nn.Module] = []
        self._unit: Application | None = None
        self._unit_module: torch.nn.Module | None = None
        self._is_replacement = is_replacement
        self._turns: dict[str, int] = {}
        # Tensors are known by id, and kept so that no id is given twice.
        self._kept: list[torch.Tensor] = []
        self._origins: dict[int, _Origin] = {}
        self._gates: list[_Gate] = []
        self._roots = 0
        self._convolutions = {n for n, m in network.named_modules() if isinstance(m, torch.nn.modules.conv._ConvNd)}
        self._mark([images_NCHW], {})
        for module in network.modules():
            module.register_forward_pre_hook(self._enter)
            module.register_forward_hook(self._leave)

    # Modules

    def _enter(self, module: torch.nn.Module, inputs: Any) -> None:
        if self._unit is None:
            kind = self._kind_of(module)
            if kind is not None:
                self._unit = self._begin(self._path(module), kind, module, inputs)
                self._unit_module = module
        self._running.append(module)

    def _leave(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        self._running.pop()
        if module is self._unit_module:
            unit, self._unit, self._unit_module = self._unit, None, None
            gates = [gate for gate in self._gates if gate.application is unit]
            if any(id(t) in self._origins for t in _tensors(inputs)):
                self._mark(_tensors(output), {}, gates)

    def _path(self, module: torch.nn.Module) -> str:
        """The module's path from the module that calls it, or else its first."""
        if self._running:
            caller = self._running[-1]
            for attribute, child in caller._modules.items():
                if child is module:
                    return f"{self._names[caller]}.{attribute}".lstrip(".")
        return self._names[module]

    def _kind_of(self, module: torch.nn.Module) -> Kind | None:
        if self._is_replacement(module):
            return "replaced"
        if has_class(module, GATE_CLASSES):
            return "gate"
        if has_class(module, ACTIVATION_CLASSES):
            caller = self._running[-1] if self._running else module
            return "gate" if has_class(caller, ATTENTION_CLASSES) else "native"
        return None

    def _begin(self, path: str, kind: Kind, module: torch.nn.Module, inputs: Any) -> Application:
        turn = self._turns.get(path, 0)
        self._turns[path] = turn + 1
        feeds = self._fed(inputs)
        tensors = _tensors(inputs)
        dims = tensors[0].dim() if tensors else 4
        # Tokens (N, L, C) have their channels last, even behind a convolution; maps (N, H, W, C) of a linear layer too.
        channels_last = dims == 3 or any(f.layer not in self._convolutions for f in feeds)
        application = Application(
            module=path,
            instance=self._names[module],
            turn=turn,
            kind=kind,
            class_name=type(module).__name__,
            feeds=feeds,
            channel_dim=-1 if channels_last else 1,
        )
        self.applications.append(application)
        return application

    # Operators

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        inputs = _tensors((args, kwargs or {}))
        outputs = _tensors(output)
        known = [self._origins[id(t)] for t in inputs if id(t) in self._origins]
        if not known:
            return output  # not from the image: a position code, a weight
        name = func._schema.name.partition("::")[2].rstrip("_") if func._schema.name else ""
        layer = self._running[-1] if self._running else None
        gates = [gate for origin in known for gate in origin.gates]
        for gate in gates:
            gate.read = True
        if isinstance(layer, torch.nn.Linear) or (name == "convolution" and _has_weights(layer)):
            self._mark(outputs, {self._names[layer]: False} if layer is not None else {})
        elif self._activates(name, args, kwargs or {}):
            application = self._unit or self._bare(name, inputs)
            application.operators += [name] if self._unit else []
            made = []
            if application.kind == "gate" and name in ("sigmoid", "hardsigmoid"):
                made = [_Gate(application, known[0].root)]
                self._gates += made
            self._mark(outputs, {}, made)
        elif name in WEIGHING and len(known) > 1:
            self._weigh(name, known)
            self._mark(outputs, self._joined(inputs))
        else:
            feeds = self._joined(inputs)
            if any(norm in name for norm in NORMS):
                feeds, gates = dict.fromkeys(feeds, True), []
            root = known[0].root if name in AFFINE and len(known) == 1 else None
            self._mark(outputs, feeds, gates, root)
        return output

    @staticmethod
    def _activates(name: str, args: Any, kwargs: Any) -> bool:
        if name in ("clamp", "clamp_min", "clamp_max"):
            # A rectifier, or one with a ceiling, written as a clamp; other bounds keep numbers valid.
            low = kwargs.get("min", args[1] if len(args) > 1 and name != "clamp_max" else None)
            high = kwargs.get("max", args[-1] if len(args) > (1 if name == "clamp_max" else 2) else None)
            low, high = (b if isinstance(b, int | float) else None for b in (low, high))
            return (high is not None and abs(high) < 100) or (high is None and low is not None and -100 < low <= 0)
        return name in ACTIVATION_OPERATORS or name in GATE_OPERATORS

    def _bare(self, name: str, inputs: list[torch.Tensor]) -> Application:
        """An operator outside every known module."""
        module = self._running[-1]
        kept = name in GATE_OPERATORS or has_class(module, ATTENTION_CLASSES)
        application = self._begin(self._names[module], "gate" if kept else "function", module, inputs)
        application.operators.append(name)
        return application

    @staticmethod
    def _weigh(name: str, factors: Sequence[_Origin]) -> None:
        """A gate weighs other features; x * sigmoid(x), or of 1.7 x, is no gate but swish, whoever wrote it."""
        for number, factor in enumerate(factors):
            others = [other for n, other in enumerate(factors) if n != number]
            for gate in factor.gates:
                if any(other.root == gate.root for other in others):
                    gate.application.kind = "function"
                    gate.application.operators.append(name)
                elif any(gate not in other.gates for other in others):
                    gate.weighs = True

    def finish(self) -> None:
        """Gates that nothing reads were not applied, and what weighs nothing was no gate but an activation."""
        for gate in self._gates:
            application = gate.application
            if not gate.read:
                self.applications.remove(application)
            elif application.kind == "gate" and not gate.weighs:
                application.kind = "function"

    # Where a tensor comes from

    def _mark(
        self,
        tensors: list[torch.Tensor],
        feeds: dict[str, bool],
        gates: Sequence[_Gate] = (),
        root: int | None = None,
    ) -> None:
        for tensor in tensors:
            self._roots += 1
            self._kept.append(tensor)
            self._origins[id(tensor)] = _Origin(feeds, self._roots if root is None else root, tuple(gates))

    def _joined(self, tensors: list[torch.Tensor]) -> dict[str, bool]:
        joined: dict[str, bool] = {}
        for tensor in tensors:
            if id(tensor) in self._origins:
                for layer, normalised in self._origins[id(tensor)].feeds.items():
                    joined[layer] = joined.get(layer, True) and normalised
        return joined

    def _fed(self, inputs: Any) -> tuple[Feed, ...]:
        return tuple(Feed(layer, normalised) for layer, normalised in self._joined(_tensors(inputs)).items())


def _has_weights(layer: torch.nn.Module | None) -> bool:
    """Whether the module has weights of its own: a fixed filter, as of a blur, passes on what comes in."""
    return layer is not None and any(True for _ in layer.parameters(recurse=False))


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def site_names(applications: Sequence[Application]) -> list[str]:
    """A name for each: the module's path, with the number of the call where it makes several."""
    calls = Counter(a.module for a in applications)
    return [f"{a.module}.{a.turn}" if calls[a.module] > 1 else a.module for a in applications]
