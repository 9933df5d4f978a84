"""Trace of a forward pass: every activation that is applied, where, and the layers that feed it.

The pass runs on a copy of the network, if possible on the meta device, where only shapes are computed. Operators are
recorded below the modules (`TorchDispatchMode`), which finds an activation in any form: as a module, as a function, in
place, or as x * sigmoid(x). An activation without an operator of its own (x / (1 + |x|), also as F.softsign, or a
torch.where) cannot be distinguished from other arithmetic.
"""

import copy
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from segexp.data import seeded
from segexp.models.architectures import MIN_BATCH

Kind = Literal["replaced", "native", "function", "gate"]
"""How an activation is applied: by segexp's replacement, a module of a known class, a bare function, or as a gate."""


def _words(text: str, prefix: str = "") -> frozenset[str]:
    return frozenset(prefix + word for word in text.split())


_TORCH = "torch.nn.modules.activation."
_TIMM = "timm.layers.activations."
_TIMM_ME = "timm.layers.activations_me."

REPLACEMENTS = ("segexp.models.swap.CallSites",)  # what segexp puts in the place of an activation

ACTIVATION_CLASSES = (
    _words("ReLU ReLU6 LeakyReLU PReLU RReLU ELU CELU SELU GELU SiLU Mish Hardswish Softplus Tanh Hardtanh", _TORCH)
    | _words("LogSigmoid Softsign Softshrink Hardshrink Tanhshrink Threshold", _TORCH)
    | _words("Swish Mish Tanh HardSwish HardMish PReLU GELU GELUTanh QuickGELU", _TIMM)
    | _words("SwishMe MishMe HardSwishMe HardMishMe", _TIMM_ME)
    | _words("StarReLU SquaredReLU", "timm.models.metaformer.")
)
"""Modules that are a hidden activation, by full name; includes subclasses."""

GATE_CLASSES = (
    _words("Sigmoid Hardsigmoid Softmax Softmax2d Softmin LogSoftmax GLU MultiheadAttention", _TORCH)
    | _words("Sigmoid HardSigmoid", _TIMM)
    | _words("HardSigmoidMe", _TIMM_ME)
)
"""Modules that weight features (squeeze-and-excitation, attention); they are not replaced."""

ATTENTION_CLASSES = _words("efficientvit_mit.LiteMLA mobilevit.LinearSelfAttention", "timm.models.")
"""Attention with a rectifier as its kernel: activations directly in it are part of the attention and not replaced."""

ACTIVATION_OPERATORS = _words(
    "relu relu6 threshold leaky_relu prelu _prelu_kernel rrelu rrelu_with_noise elu celu selu gelu silu mish hardswish "
    "softplus tanh hardtanh log_sigmoid log_sigmoid_forward softshrink hardshrink atan erf sin maximum "
    "_transformer_encoder_layer_fwd"
)

GATE_OPERATORS = _words("sigmoid hardsigmoid softmax _softmax _safe_softmax _log_softmax glu")

AFFINE = _words("mul add sub rsub neg div clone detach alias _to_copy")
"""Operators that combine one tensor with weights or numbers only: x and 1.7 x + b have the same root."""

WEIGHING = _words("mul bmm baddbmm matmul mm addcmul")  # operators with which a gate weights features

FAILURES = (ValueError, RuntimeError, TypeError, AssertionError, IndexError)
"""Exceptions of networks for images that they cannot process."""

NORMS = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm")


@dataclass(frozen=True)
class Feed:
    """A layer (convolution or linear) whose output reaches an activation with no other activation in between."""

    layer: str
    normalised: bool


@dataclass
class Application:
    """One application of an activation in the pass.

    module: path of the module that applied it, through its caller (one module may have several paths). instance: the
    module's first path. turn: number of earlier applications at this path. class_name: the module's class. operators:
    those that were computed. feeds: the layers before it. channel_dim: dimension of its channels. channels: their
    number.
    """

    module: str
    instance: str
    turn: int
    kind: Kind
    class_name: str
    operators: list[str] = field(default_factory=list)
    feeds: tuple[Feed, ...] = ()
    channel_dim: int = 1
    channels: int = 1


@dataclass(frozen=True)
class Trace:
    """The activations of a forward pass in order, and the shape of its output.

    last: the layers whose output reaches the output with no activation in between. end: the operator of the activation
    that the output comes from, where there is no such layer. changes_input: whether the network changes its images.
    """

    applications: list[Application]
    output_shape: tuple[int, ...]
    last: tuple[Feed, ...] = ()
    end: str = ""
    changes_input: bool = False


def trace(network: torch.nn.Module, in_channels: int, size: int, *, training: bool = True) -> Trace:
    """Trace a forward pass of two images of size x size pixels, without changing network or random generators.

    Raises the network's exception (one of `FAILURES`) if it cannot process such images.
    """

    def traced(device: str) -> Trace:
        watched = copy.deepcopy(network).to(device).train(training)
        images_NCHW = torch.zeros(MIN_BATCH, in_channels, size, size, device=device)
        watch = _Watch(watched, images_NCHW)
        with seeded(0, "probe"), torch.no_grad(), watch:
            output = watched(images_NCHW)
        if not isinstance(output, torch.Tensor):
            raise TypeError(f"it returns {type(output).__name__}, not a tensor of logits (N, K, H, W)")
        last = watch.feeds_of([output])
        ending = [] if last or not watch.applications else watch.applications[-1].operators[-1:]
        watch.finish()
        return Trace(watch.applications, tuple(output.shape), last, "".join(ending), images_NCHW._version > 0)

    try:
        return traced("meta")
    except FAILURES:  # networks that cannot run on shapes only are run with numbers
        return traced("cpu")


def has_class(module: torch.nn.Module, names: Iterable[str]) -> bool:
    """Whether the module's class, or one it derives from, has one of these full names."""
    return any(f"{c.__module__}.{c.__qualname__}" in names for c in type(module).__mro__)


@dataclass
class _Gate:
    """A sigmoid that may turn out to be a gate; root: of its argument. A softmax always counts as attention."""

    application: Application
    root: int
    read: bool = False
    weighs: bool = False


@dataclass(frozen=True)
class _Origin:
    """Origin of a tensor: layers since the last activation, root of its affine functions, gates it contains."""

    feeds: dict[str, bool]
    root: int
    gates: tuple[_Gate, ...] = ()


def _run(operator: Any, args: Any, kwargs: Any) -> Any:
    """The operator's output. Batch norm of shapes alone, half of the time of a trace, is computed here."""
    if args and operator is torch.ops.aten.native_batch_norm.default and args[0].is_meta:
        statistics = (args[0].new_empty(args[0].shape[1], dtype=torch.float32) for _ in range(2))
        return (torch.empty_like(args[0]), *statistics)
    return operator(*args, **kwargs)


class _Watch(TorchDispatchMode):
    """Follows every tensor that is computed from the image."""

    def __init__(self, network: torch.nn.Module, images_NCHW: torch.Tensor) -> None:
        super().__init__()
        self.applications: list[Application] = []
        self._names = {module: name for name, module in network.named_modules()}
        self._running: list[torch.nn.Module] = []
        self._unit: Application | None = None
        self._unit_module: torch.nn.Module | None = None
        self._turns: dict[str, int] = {}
        # Tensors are identified by id, and kept alive so that no id is reused.
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
        # With shapes only, older torch lets empty images pass. No channels are right: encoders without a first stage.
        if isinstance(output, torch.Tensor) and 0 in output.shape[2:]:
            raise RuntimeError(f"the output of {type(module).__name__} is empty")
        if module is self._unit_module:
            gates = [gate for gate in self._gates if gate.application is self._unit]
            self._unit = self._unit_module = None
            if any(id(t) in self._origins for t in _tensors(inputs)):
                self._mark(_tensors(output), {}, gates)

    def _path(self, module: torch.nn.Module) -> str:
        """The module's path through its caller, else its first path."""
        if self._running:
            caller = self._running[-1]
            for attribute, child in caller._modules.items():
                if child is module:
                    return f"{self._names[caller]}.{attribute}".lstrip(".")
        return self._names[module]

    def _kind_of(self, module: torch.nn.Module) -> Kind | None:
        if has_class(module, REPLACEMENTS):
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
        tensors = _tensors(inputs)
        feeds = self.feeds_of(tensors)
        shape = tensors[0].shape if tensors else ()
        # Channels are last in tokens (N, L, C), even after a convolution, and in maps (N, H, W, C) of a linear layer.
        channels_last = len(shape) == 3 or any(f.layer not in self._convolutions for f in feeds)
        channel_dim = -1 if channels_last else 1
        application = Application(
            module=path,
            instance=self._names[module],
            turn=turn,
            kind=kind,
            class_name=type(module).__name__,
            feeds=feeds,
            channel_dim=channel_dim,
            channels=shape[channel_dim] if len(shape) > 1 else 1,
        )
        self.applications.append(application)
        return application

    # Operators

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = _run(func, args, kwargs or {})
        inputs = _tensors((args, kwargs or {}))
        outputs = _tensors(output)
        known = [self._origins[id(t)] for t in inputs if id(t) in self._origins]
        if not known:
            return output  # independent of the image: a position embedding, a weight
        name = func._schema.name.partition("::")[2].rstrip("_") if func._schema.name else ""
        layer = self._running[-1] if self._running else None
        gates = [gate for origin in known for gate in origin.gates]
        for gate in gates:
            gate.read = True
        # A fixed filter, such as a blur, has no weights and does not count as a layer.
        has_weights = layer is not None and any(True for _ in layer.parameters(recurse=False))
        if layer is not None and (isinstance(layer, torch.nn.Linear) or (name == "convolution" and has_weights)):
            self._mark(outputs, {self._names[layer]: False})
        elif self._activates(name, args, kwargs or {}):
            application = self._unit or self._bare(name, inputs)
            application.operators.append(name)
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
            # A rectifier written as a clamp, perhaps with an upper bound; other bounds only keep numbers valid.
            low = kwargs.get("min", args[1] if len(args) > 1 and name != "clamp_max" else None)
            high = kwargs.get("max", args[-1] if len(args) > (1 if name == "clamp_max" else 2) else None)
            low, high = (b if isinstance(b, int | float) else None for b in (low, high))
            return (high is not None and abs(high) < 100) or (high is None and low is not None and -100 < low <= 0)
        return name in ACTIVATION_OPERATORS or name in GATE_OPERATORS

    def _bare(self, name: str, inputs: list[torch.Tensor]) -> Application:
        """An activation operator outside every known module."""
        module = self._running[-1]
        kept = name in GATE_OPERATORS or has_class(module, ATTENTION_CLASSES)
        return self._begin(self._names[module], "gate" if kept else "function", module, inputs)

    @staticmethod
    def _weigh(name: str, factors: Sequence[_Origin]) -> None:
        """A gate weights other features; x * sigmoid(x), also of 1.7 x, is not a gate but swish."""
        for number, factor in enumerate(factors):
            others = [other for n, other in enumerate(factors) if n != number]
            for gate in factor.gates:
                if any(other.root == gate.root for other in others):
                    gate.application.kind = "function"
                    gate.application.operators.append(name)
                elif any(gate not in other.gates for other in others):
                    gate.weighs = True

    def finish(self) -> None:
        """Drop gates that nothing reads; those that weight no features are activations."""
        for gate in self._gates:
            application = gate.application
            if not gate.read:
                self.applications.remove(application)
            elif application.kind == "gate" and not gate.weighs:
                application.kind = "function"

    # Where a tensor comes from

    def _mark(
        self, tensors: list[torch.Tensor], feeds: dict[str, bool], gates: Sequence[_Gate] = (), root: int | None = None
    ) -> None:
        for tensor in tensors:
            self._roots += 1
            self._kept.append(tensor)
            self._origins[id(tensor)] = _Origin(feeds, self._roots if root is None else root, tuple(gates))

    def feeds_of(self, tensors: list[torch.Tensor]) -> tuple[Feed, ...]:
        """The layers that these tensors come from."""
        return tuple(Feed(layer, normalised) for layer, normalised in self._joined(tensors).items())

    def _joined(self, tensors: list[torch.Tensor]) -> dict[str, bool]:
        joined: dict[str, bool] = {}
        for tensor in tensors:
            if id(tensor) in self._origins:
                for layer, normalised in self._origins[id(tensor)].feeds.items():
                    joined[layer] = joined.get(layer, True) and normalised
        return joined


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def site_names(applications: Sequence[Application]) -> list[str]:
    """A name for each: the module's path, with the number of the call if there are several."""
    calls = Counter(a.module for a in applications)
    return [f"{a.module}.{a.turn}" if calls[a.module] > 1 else a.module for a in applications]
