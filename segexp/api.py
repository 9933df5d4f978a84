"""The Python API: the objects of the command line. `import segexp` alone does not import torch.

>>> import segexp
>>> arctan = segexp.output_activation("arctan")
>>> [round(float(v), 4) for v in arctan.inverse([0.01, 0.5])]
[-31.8205, 0.0]
"""

import functools
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from segexp.activations.head import Head, Prediction, logit_of, make_head
from segexp.activations.hidden import SWAP_OPTIONS, make_hidden
from segexp.activations.output import ALL_MODES, OUTPUT_ACTIVATIONS, outside, own_params, slope_of
from segexp.activations.output import OutputActivation as Entry
from segexp.config import alias_target, params
from segexp.config.canonical import checked_terms
from segexp.errors import UsageError
from segexp.losses import IGNORE, LOSSES, class_masks, incompatibility, term_of, valid_pixels
from segexp.records import columns_of, read_run
from segexp.registry import checked_options, plugins
from segexp.running import prepare

if TYPE_CHECKING:
    from segexp.models.swap import SwapReport

if not plugins.LOADED:
    plugins.use(plugins.from_environment())


def use_plugins(*given: str | os.PathLike[str]) -> None:
    """Load exactly these plugins (files, or names of installed ones), as ``--plugin`` does; none unloads all.

    What they register is found by name everywhere; a file that has changed is loaded again. Raises UsageError.

    >>> import pathlib, segexp, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "parts.py")
    ...     line = "from segexp.plugin import hidden_activation\\n@hidden_activation\\ndef twice(x): return 2 * x\\n"
    ...     _ = file.write_text(line)
    ...     segexp.use_plugins(file)
    >>> float(segexp.hidden_activation("twice")(3.0))
    6.0
    >>> segexp.use_plugins()
    """
    plugins.use(given)


Overrides = Sequence[str] | Mapping[str, Any]
"""As on the command line, ["activation=arctan", "trainer.epochs=2"], or {"activation": "arctan", ...}."""


@dataclass(frozen=True)
class OutputActivation:
    """An output activation F with its options, acting element by element (`minmax_linear`: on the whole tensor).

    Tensors of half precision are raised to float32; numbers and lists become float64 tensors.
    """

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def entry(self) -> Entry:
        """The facts of the registry: formula, tail, slope at 0, source ..."""
        return OUTPUT_ACTIVATIONS[self.name]

    @property
    def slope(self) -> float:
        """s of F(s x)."""
        return slope_of(self.entry, self.params)

    def __call__(self, x: Any) -> torch.Tensor:
        """F(x), in [0, 1]; of `identity`, x itself."""
        if self.entry.log_odds is None:
            return self.slope * _tensor(x)
        return self.log_odds(x).sigmoid()

    def log_odds(self, x: Any) -> torch.Tensor:
        """phi(x) = ln F(x) - ln(1 - F(x)). Raises UsageError for `identity`."""
        if self.entry.log_odds is None:
            raise UsageError(f"{self.name} gives plain values: it has no probabilities and no log-odds")
        self._check_binary()
        return self.entry.log_odds(self.slope * _tensor(x), **own_params(self.params))

    def log_prob(self, x: Any) -> torch.Tensor:
        """ln F(x), exact in both tails."""
        return F.logsigmoid(self.log_odds(x))

    def log_not_prob(self, x: Any) -> torch.Tensor:
        """ln(1 - F(x)), exact in both tails."""
        return F.logsigmoid(-self.log_odds(x))

    def inverse(self, p: Any) -> torch.Tensor:
        """x with F(x) = p, float64; infinite where only the limit is p.

        Raises ValueError where p is not within [0, 1] or does not determine x.
        """
        if bool(((_tensor(p) < 0) | (_tensor(p) > 1)).any()):
            raise ValueError("a probability lies within [0, 1]")
        self._check_binary()
        return logit_of(self.entry, torch.logit(_tensor(p).double()), own_params(self.params)) / self.slope

    def _check_binary(self) -> None:
        if reason := outside(self.entry, "binary"):
            raise UsageError(f"{reason}: use segexp.head({self.name!r}, mode={self.entry.modes[0]!r})")


def _tensor(x: Any) -> torch.Tensor:
    if not isinstance(x, torch.Tensor):
        return torch.as_tensor(x, dtype=torch.float64)
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def output_activation(name: str, **params: Any) -> OutputActivation:
    """The output activation called ``name`` (`segexp list activations`), with its options, ``slope`` among them.

    What is learned in a run (``slope="learned"``, learned_tail's ``tail``) has its initial value here, and stays so.
    Raises UsageError for unknown names and options.

    >>> import segexp
    >>> probit = segexp.output_activation("normal_cdf")
    >>> [round(float(v), 4) for v in probit([0.0, 1.96])]
    [0.5, 0.975]
    >>> round(float(probit.log_prob(-20.0)), 4), round(float(probit.log_odds(2.0)), 4)
    (-203.9172, 3.7602)
    >>> round(float(segexp.output_activation("softsign", slope="matched").inverse(0.01)), 6)
    -98.0
    """
    canonical, options = alias_target("activation", name)
    given = checked_options("activation", canonical, options, params)
    modes = OUTPUT_ACTIVATIONS[canonical].aliases.get(name)
    if modes is not None and set(modes) != set(ALL_MODES):
        raise UsageError(f"{name} is {canonical} over exclusive classes: use head('{canonical}', mode='{modes[0]}')")
    try:
        slope_of(OUTPUT_ACTIVATIONS[canonical], given)
    except ValueError as error:
        raise UsageError(f"activation.slope={given['slope']}: {error}") from error
    return OutputActivation(canonical, given)


def head(activation: str | OutputActivation, mode: str = "softmax") -> Head:
    """The function logits_NCHW -> `Prediction`: log-odds, probabilities (``.values_NKHW``) and decisions.

    mode: softmax (exclusive classes, the background first) or independent (a channel per foreground class); one channel
    is always the foreground of two classes.

    >>> import segexp, torch
    >>> prediction = segexp.head("arctan")(torch.tensor([[[[-1.0, 0.0, 1.0]]]]))
    >>> [round(p, 6) for p in prediction.values_NKHW.flatten().tolist()]
    [0.25, 0.5, 0.75]
    >>> prediction.foreground_NFHW().flatten().tolist()
    [False, False, True]
    >>> segexp.head("sigmoid", mode="softmax")(torch.zeros(1, 4, 1, 1)).values_NKHW.flatten().tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    if mode not in ("softmax", "independent", "binary"):
        raise UsageError(f"unknown head mode '{mode}': softmax or independent")
    if activation == "softmax" and mode == "softmax":
        activation = "sigmoid"
    chosen = output_activation(activation) if isinstance(activation, str) else activation

    def of_logits(logits_NKHW: torch.Tensor) -> Prediction:
        if logits_NKHW.dim() != 4 or not logits_NKHW.is_floating_point():
            raise UsageError(f"logits {tuple(logits_NKHW.shape)} must be a floating tensor (N, K, H, W)")
        channels = logits_NKHW.shape[1]
        if mode == "binary" and channels != 1:
            raise UsageError(f"mode='binary' is for one channel, not {channels}")
        if mode == "softmax" and channels == 2:
            raise UsageError("two classes have one logit, for the foreground: use one channel")
        in_force: Any = "binary" if channels == 1 else mode
        if reason := outside(chosen.entry, in_force):
            raise UsageError(reason)
        return make_head(chosen.entry, in_force, chosen.params)(logits_NKHW)

    return of_logits


def loss(
    name: str, *, ignore_index: int | None = IGNORE, **params: Any
) -> Callable[[Prediction, torch.Tensor], torch.Tensor]:
    """The loss called ``name`` (`segexp list losses`) as a function (prediction, target) -> scalar tensor.

    The target is an integer map (N, H, W), ``ignore_index`` where a pixel does not count, or soft labels: a floating
    tensor of the logits' shape, NaN where a pixel does not count. Raises UsageError for unknown names and options, and,
    when called, for a prediction with which the loss means nothing.

    >>> import segexp, torch
    >>> logits, target = torch.tensor([[[[-20.0, 3.0]]]], requires_grad=True), torch.tensor([[[1, 1]]])
    >>> value = segexp.loss("bce")(segexp.head("normal_cdf")(logits), target)
    >>> value.backward()
    >>> [round(g, 4) for g in (2 * logits.grad).flatten().tolist()]
    [-20.0498, -0.0044]
    >>> prediction = segexp.head("arctan")(torch.tensor([[[[-1.0, 1.0]]]]))
    >>> round(float(segexp.loss("sum", terms={"dice": 1, "bce": 0.5})(prediction, torch.tensor([[[0, 1]]]))), 4)
    0.3938
    """
    if name == "sum":
        return _sum(params, ignore_index)
    canonical, known = alias_target("loss", name)
    entry = LOSSES[canonical]
    params = checked_options("loss", canonical, known, params)
    checked = False

    def of_prediction(prediction: Prediction, target: torch.Tensor) -> torch.Tensor:
        modes = entry.aliases.get(name)
        if modes is not None and prediction.mode not in modes:
            raise UsageError(f"{name} is {entry.name} for {' or '.join(modes)} heads only: use {entry.name}")
        refused = incompatibility(OUTPUT_ACTIVATIONS[prediction.activation], entry, prediction.mode)
        if refused:
            raise UsageError(refused)
        nonlocal checked
        if not checked or target.device.type == "cpu":
            # Reading values waits for a GPU: there only the first target is checked, which finds masks of 0 and 255.
            _check_target(prediction, target, ignore_index)
            checked = True
        if not target.is_floating_point():
            classes = target.long()
            # Inside segexp 255 means ignored, whatever ignore_index is.
            target = classes if ignore_index is None else classes.masked_fill(classes == ignore_index, IGNORE)
        return entry.function(prediction, target, **params)

    return of_prediction


def _sum(params: Mapping[str, Any], ignore_index: int | None) -> Callable[[Prediction, torch.Tensor], torch.Tensor]:
    """The weighted sum of the losses in ``params["terms"]``."""
    if set(params) - {"terms"}:
        raise UsageError(f"loss.{min(set(params) - {'terms'})}: sum has no such option; it takes terms")
    checked_terms(params.get("terms"))
    # By the given name: aliases may restrict the head (bce: binary only).
    terms = ((term, *term_of(given)) for term, given in params["terms"].items())
    weighted = [(weight, loss(term, ignore_index=ignore_index, **options)) for term, weight, options in terms]

    def total(prediction: Prediction, target: torch.Tensor) -> torch.Tensor:
        first, *others = (weight * function(prediction, target) for weight, function in weighted)
        return functools.reduce(operator.add, others, first)

    return total


def _check_target(prediction: Prediction, target: torch.Tensor, ignore_index: int | None) -> None:
    """Raise UsageError when a target holds numbers that are no class, or soft labels that are no probability."""
    if target.is_floating_point():
        counted = target[~target.isnan()]
        if bool(((counted < 0) | (counted > 1)).any()):
            raise UsageError("soft labels must lie in [0, 1] (NaN where a pixel does not count); classes are integers")
        return
    classes = target.long()
    num_classes = prediction.classes.stop
    wrong = (classes < 0) | (classes >= num_classes)
    if ignore_index is not None:
        wrong &= classes != ignore_index
    if bool(wrong.any()):
        raise UsageError(
            f"the target holds {int(classes[wrong][0])}, the prediction has classes 0 to {num_classes - 1}"
            + ("" if ignore_index is None else f", and {ignore_index} is ignored")
            + ": masks of 0 and 255 are (mask > 127).long()"
        )


def build_model(overrides: Overrides = ()) -> torch.nn.Module:
    """The initial network of a configuration: images_NCHW -> logits_NKHW, on the CPU, without head and activation.

    The same configuration and seed give the same weights as `segexp train`. The number of input channels is the data
    set's, ``dataset.channels`` where it is given. Raises UsageError.

    >>> import segexp, torch
    >>> network = segexp.build_model(["dataset.channels=3", "dataset.num_classes=4", "backbone=resnet18"])
    >>> network(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 4, 64, 64])
    """
    from segexp.data import adapters
    from segexp.models.architectures import common_size
    from segexp.running.build import built_of, initial_bias, initial_network, set_bias, threads_kept

    config = _composed(overrides)
    if params(config.activation)["prior_bias"] == "auto":
        with threads_kept():
            return initial_network(prepare(config))[0].network.cpu()
    channels = getattr(config.dataset, "channels", None)
    if channels is None:
        channels = adapters()[config.dataset.adapter].open(config.dataset).channels
    size = config.dataset.image_size or common_size(config.model.name, params(config.model), config.backbone.name)
    network = built_of(config, channels, size).network
    set_bias(network, initial_bias(config, None))
    return network


def audit(network: torch.nn.Module, image_size: int | None = None) -> "SwapReport":
    """Account for every activation that a forward pass of the network applies, in training and in evaluation.

    image_size: side in pixels of the images of that pass; where not given, the one the network was built for.
    ``escaped`` of the report is empty where nothing but the chosen activation and gates is left. A network that
    `build_model` did not make is reported as native. Raises UsageError when the network does not take such images.

    >>> import segexp
    >>> report = segexp.audit(segexp.build_model(["backbone=resnet18", "hidden_activation=arctan"]))
    >>> report.replaced, report.shared_split, report.gates_kept, report.escaped
    (27, 8, 0, {})
    """
    from segexp.models.swap import audit as audited
    from segexp.models.trace import FAILURES

    built_for: Any = getattr(network, "built_for", None)
    if built_for is None:
        first = next((m for m in network.modules() if isinstance(m, torch.nn.modules.conv._ConvNd)), None)
        built_for = (first.in_channels if first else 3, 224)
    channels, size = built_for
    try:
        return audited(network, channels, image_size or size)[0]
    except FAILURES as error:
        taken = f"images of {image_size or size} px and {channels} channels"
        raise UsageError(f"the network does not take {taken}: {error}; give image_size") from error


def hidden_activation(name: str, **params: Any) -> torch.nn.Module:
    """A new module of the hidden activation called ``name`` (`segexp list hidden_activations`), with its options.

    Raises UsageError for unknown names and options, and for `native`, which is no one function.

    >>> import segexp, torch
    >>> leaky = segexp.hidden_activation("leaky_relu", negative_slope=0.1)
    >>> [round(float(v), 4) for v in leaky(torch.tensor([-2.0, 3.0]))]
    [-0.2, 3.0]
    >>> sum(p.numel() for p in segexp.hidden_activation("rational").parameters())
    10
    """
    canonical, options = alias_target("hidden_activation", name)
    if canonical == "native":
        raise UsageError("native keeps the architecture's own activations, which are no single function")
    own = [option for option in options if option not in SWAP_OPTIONS]
    return make_hidden(canonical, checked_options("hidden_activation", canonical, own, params))


def run(overrides: Overrides = ()) -> dict[str, Any]:
    """What `segexp train` does: one run; returns the row of its summary.csv and ``run_dir``.

    A run that is done already is read, an unfinished one continued. A diverged run has NaN for scores. Raises
    UsageError for bad usage, configuration or data, and RuntimeError when the run failed.

    >>> import segexp, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     summary = segexp.run({
    ...         "activation": "arctan", "loss": "dice", "outputs": folder, "trainer.epochs": 1, "trainer.device": "cpu",
    ...         "dataset.number": 24, "dataset.image_size": 32,
    ...     })
    >>> summary["activation"], summary["epochs"], 0 <= summary["dice"] <= 1
    ('arctan', 1, True)
    """
    from segexp.evaluation.pictures import try_to_draw_figures
    from segexp.running.execute import execute

    config = _composed(overrides)
    outcome = execute(prepare(config))
    if outcome.status == "done" and config.trainer.figures:
        try_to_draw_figures(outcome.run_dir)
    if outcome.status == "failed":
        raise RuntimeError(f"the run in {outcome.run_dir} failed: {outcome.reason}")
    columns = columns_of("summary", read_run(outcome.run_dir))
    undefined = {name: float("nan") if kind is float else None for name, kind in columns.items()}
    known = {name: value for name, value in outcome.summary.items() if value is not None and name in undefined}
    return undefined | known | {"run_dir": str(outcome.run_dir)}


def load(run_dir: str | Path) -> torch.nn.Module:
    """A finished run's selected network with its normalisation and activation: images_NCHW -> probabilities_NKHW.

    In eval mode, on the CPU. Images are uint8, uint16 or floating in [0, 1], of any height and width, at the scale
    of the training images; at their own size where ``dataset.normalise=image``, percentile or ct acts before
    ``dataset.fit=resize``, which then resizes them as `segexp predict` does. K is 1 (two classes: the foreground),
    C - 1 (independent) or C (softmax). Raises UsageError.

    >>> import segexp, tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = segexp.run(["trainer.epochs=1", "dataset.number=24", "dataset.image_size=32", f"outputs={folder}"])
    ...     model = segexp.load(done["run_dir"])
    >>> p = model(torch.zeros(1, 1, 50, 70, dtype=torch.uint8))
    >>> p.shape, bool(((p >= 0) & (p <= 1)).all())
    (torch.Size([1, 1, 50, 70]), True)
    """
    from segexp.config.compose import recorded_config
    from segexp.running.build import ProbabilityModel, trained

    folder = Path(run_dir)
    record = read_run(folder)
    config = recorded_config(folder, ["trainer.device=cpu"])
    sizes = (record.get("data") or {}).get("sizes") or {}
    return ProbabilityModel(trained(folder, config, record, "cpu"), config, sizes)


def confusion_counts(
    prediction_NHW: torch.Tensor, target_NHW: torch.Tensor, num_classes: int, ignore_index: int | None = None
) -> torch.Tensor:
    """tp, fp, fn of two integer label maps: int64 (N, C - 1, 3), class 0 being the background.

    Pixels whose target is ``ignore_index`` are not counted. Raises ValueError when the shapes differ, when a map holds
    no whole numbers, or when ``num_classes`` is below 2.

    >>> import segexp, torch
    >>> prediction, target = torch.tensor([[[1, 1, 2, 0]]]), torch.tensor([[[1, 0, 2, 255]]])
    >>> segexp.confusion_counts(prediction, target, num_classes=3, ignore_index=255).tolist()
    [[[1, 1, 0], [1, 0, 0]]]
    """
    from segexp.evaluation.predict import mask_counts

    if prediction_NHW.shape != target_NHW.shape:
        raise ValueError(f"prediction {tuple(prediction_NHW.shape)} and target {tuple(target_NHW.shape)} differ")
    if prediction_NHW.is_floating_point() or target_NHW.is_floating_point():
        raise ValueError("label maps hold whole numbers: take the argmax, or compare with a threshold, first")
    if num_classes < 2:
        raise ValueError(f"num_classes counts the background and is at least 2, not {num_classes}")
    foreground = range(1, num_classes)
    return mask_counts(
        class_masks(prediction_NHW, foreground),
        class_masks(target_NHW, foreground),
        valid_pixels(target_NHW, ignore_index),
    )


def _as_text(key: str, value: Any) -> str:
    """A value in the grammar of overrides; paths and the numbers of NumPy among them."""
    from segexp.config.compose import quoted

    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    try:
        return quoted(value.item() if hasattr(value, "item") else value)
    except TypeError as error:
        raise UsageError(f"{key}: {error}") from None


def _composed(overrides: Overrides) -> Any:
    from segexp.config.compose import compose, hydra_session, readable

    if isinstance(overrides, str) or not isinstance(overrides, Sequence | Mapping):
        raise UsageError(f"overrides are a list of texts or a mapping, not {overrides!r}")
    if isinstance(overrides, Mapping):
        texts = [f"{key}={_as_text(str(key), value)}" for key, value in overrides.items()]
    else:
        texts = readable([str(text) for text in overrides])
    with hydra_session() as extra:
        return compose(texts, extra)
