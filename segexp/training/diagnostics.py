"""What hidden activations do inside the network: dead and saturated units, and gradients that vanish or explode.

Every `EVERY` steps one training step is looked at, and at the end the validation images, with the selected weights. A
unit is a channel of a call site. It is dead where its output is 0, or its gradient is 0, for every pixel of every image
looked at. Nothing that is seen changes the training, and nothing is read back from the device before the epoch ends.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from segexp.models.trace import Application

EVERY = 50
"""Training steps between two that are looked at; a look costs less than a step, so that all cost below 2 %."""

SAMPLE = 8192
"""Inputs of a call site, about, whose derivative is taken for the share that is saturated."""

SATURATED = 0.01
"""An input is saturated where |f'| is below this share of max |f'|."""

DEAD_WARNING = 0.2
RATIO_WARNING = (1e-3, 1e3)

VALUES = ("dead_output", "dead_gradient", "saturated", "mean", "sd", "grad_norm")
"""Columns of diagnostics.csv that are measured, each a number per call site."""


@dataclass(frozen=True)
class Site:
    """One call site: the ``turn``-th call of the module at ``path`` in a forward pass.

    name: the same whatever activation is there. depth: its place in the pass, from 1. part: encoder or decoder. feeds:
    paths of the layers whose outputs reach it. channel_dim: dimension of the units.
    """

    name: str
    depth: int
    part: str
    path: str
    turn: int
    feeds: tuple[str, ...]
    channel_dim: int


def sites_of(applications: "Sequence[Application]") -> list[Site]:
    """The call sites that can be looked at, in order: all but functions that the architecture calls by itself."""
    from segexp.models.trace import site_names

    sites = []
    calls: Counter[str] = Counter()
    for depth, (name, found) in enumerate(zip(site_names(applications), applications, strict=True), start=1):
        if found.kind == "function":
            continue
        # A replacement holds a module per call; a module of the architecture may be called again and again.
        path, turn = (f"{found.module}.{found.turn}", 0) if found.kind == "replaced" else (found.instance, -1)
        if turn < 0:
            turn = calls[path]
            calls[path] += 1
        part = "encoder" if found.module.startswith("encoder") else "decoder"
        feeds = tuple(feed.layer for feed in found.feeds)
        sites.append(Site(name, depth, part, path, turn, feeds, found.channel_dim))
    return sites


@dataclass
class _Seen:
    """Sums over the batches that passed one call site, on the device."""

    weight: int = 0
    units: int = 0
    output_C: Any = 0.0
    gradient_C: Any = 0.0
    saturated: Any = 0.0
    mean: Any = 0.0
    square: Any = 0.0
    grad_norm: Any = math.nan


class Probe:
    """Looks at every call site while `watching`; more batches add up."""

    def __init__(self, network: "torch.nn.Module", sites: Sequence[Site]) -> None:
        self.network = network
        self.sites = sites
        self.seen = [_Seen() for _ in sites]
        self._calls: Counter[str] = Counter()
        self._turns: dict[str, list[int]] = {}
        for number, site in enumerate(sites):
            self._turns.setdefault(site.path, []).append(number)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch one forward pass, and the backward pass that follows inside."""
        self._calls.clear()
        handles = []
        for path in self._turns:
            module = self.network.get_submodule(path)
            handles.append(module.register_forward_pre_hook(self._before(path)))
            handles.append(module.register_forward_hook(self._after(path)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _number(self, path: str) -> int | None:
        """Which call site the module at this path serves now; None where it is called more often than was seen."""
        turns, call = self._turns[path], self._calls[path]
        return turns[call] if call < len(turns) else None

    def _before(self, path: str) -> Callable[..., None]:
        def hook(module: "torch.nn.Module", inputs: Any) -> None:
            number = self._number(path)
            if number is None:
                return
            seen, site, x = self.seen[number], self.sites[number], inputs[0]
            # An activation may work in place, and other images may follow: what is needed of x is taken now.
            seen.saturated = seen.saturated + len(x) * _saturated(module, x, site.channel_dim)
            if x.requires_grad:
                x.register_hook(lambda gradient: self._gradient(number, gradient))

        return hook

    def _after(self, path: str) -> Callable[..., None]:
        def hook(module: "torch.nn.Module", inputs: Any, output: "torch.Tensor") -> None:
            import torch

            number = self._number(path)
            self._calls[path] += 1
            if number is None:
                return
            seen, y = self.seen[number], output.detach()
            seen.output_C = _largest(seen.output_C, y, self.sites[number].channel_dim)
            seen.units = len(seen.output_C)
            variance, mean = torch.var_mean(y.float(), correction=0)
            seen.weight += len(y)
            seen.mean = seen.mean + len(y) * mean
            seen.square = seen.square + len(y) * (variance + mean * mean)

        return hook

    def _gradient(self, number: int, gradient: "torch.Tensor") -> None:
        seen = self.seen[number]
        seen.gradient_C = _largest(seen.gradient_C, gradient.detach(), self.sites[number].channel_dim)

    def take_gradient_norms(self) -> None:
        """Norms of the weights' gradients of the layers before each call site, as they stand now."""
        import torch

        for site, seen in zip(self.sites, self.seen, strict=True):
            weights: list[Any] = [getattr(self.network.get_submodule(layer), "weight", None) for layer in site.feeds]
            gradients = [weight.grad for weight in weights if weight is not None and weight.grad is not None]
            if gradients:
                seen.grad_norm = torch.nn.utils.get_total_norm(gradients)

    def values(self) -> "torch.Tensor":
        """(sites, `VALUES`) on the device, NaN where there is nothing to tell."""
        import torch

        device = next(self.network.parameters()).device
        table = torch.full((len(self.seen), len(VALUES)), math.nan, device=device)
        for row, seen in zip(table, self.seen, strict=True):
            if seen.weight == 0:
                continue
            mean = seen.mean / seen.weight
            sd = (seen.square / seen.weight - mean * mean).clamp_min(0).sqrt()
            shares = [_share_of_zeros(seen.output_C), _share_of_zeros(seen.gradient_C), seen.saturated / seen.weight]
            for column, value in enumerate([*shares, mean, sd, seen.grad_norm]):
                row[column] = value
        return table


def _largest(before_C: Any, values: "torch.Tensor", channel_dim: int) -> "torch.Tensor":
    """Largest absolute value per unit, of these and of what was seen before."""
    import torch

    dims = [d for d in range(values.dim()) if d != channel_dim % values.dim()]
    now_C = torch.linalg.vector_norm(values, ord=math.inf, dim=dims)
    return now_C if isinstance(before_C, float) else torch.maximum(before_C, now_C)


def _share_of_zeros(largest_C: Any) -> Any:
    return math.nan if isinstance(largest_C, float) else (largest_C == 0).float().mean()


def _saturated(module: "torch.nn.Module", x: "torch.Tensor", channel_dim: int) -> "torch.Tensor":
    """The share of inputs, of a sample on a grid, where |f'| is below `SATURATED` max |f'|."""
    import torch

    sample_PC = _sample(x.detach(), channel_dim)
    # The largest slope need not lie among the inputs.
    grid_PC = torch.linspace(-8, 8, 65, dtype=sample_PC.dtype, device=x.device)[:, None].expand(-1, sample_PC.shape[1])
    training, module.training = module.training, False
    with torch.enable_grad():
        leaf = torch.cat([sample_PC, grid_PC]).requires_grad_()
        # The copy is for activations that work in place; forward, so that this call is not watched in turn.
        y = module.forward(leaf.clone())
        slope_PC = torch.autograd.grad(y.sum(), leaf)[0].abs() if y.requires_grad else torch.zeros_like(leaf)
    module.training = training
    return (slope_PC[: len(sample_PC)] < SATURATED * slope_PC.amax()).float().mean()


def _sample(x: "torch.Tensor", channel_dim: int) -> "torch.Tensor":
    """(P, C) of about `SAMPLE` elements, on a regular grid over images and pixels."""
    moved = x.movedim(channel_dim, -1)
    per_unit = max(1, SAMPLE // moved.shape[-1])
    steps = []
    for extent in moved.shape[:-1]:
        share = per_unit ** (1 / max(moved.dim() - 1, 1))
        steps.append(slice(None, None, max(1, int(extent / share))))
    return moved[tuple(steps)].reshape(-1, moved.shape[-1])


def diagnostics_rows(looks: Sequence[Probe], run_id: str, probe: str, epoch: int) -> list[dict[str, Any]]:
    """Rows of diagnostics.csv: the mean over the looks, none where there was none. Reads from the device.

    probe: what was looked at, train or val.
    """
    import torch

    if not looks:
        return []
    means = torch.stack([look.values() for look in looks]).nanmean(dim=0).tolist()
    network = looks[-1].network
    return [
        {
            "run_id": run_id,
            "site": site.name,
            "depth": site.depth,
            "part": site.part,
            "probe": probe,
            "epoch": epoch,
            "units": seen.units,
            **dict(zip(VALUES, values, strict=True)),
            "learned": learned_values(network.get_submodule(site.path)),
        }
        for site, seen, values in zip(looks[-1].sites, looks[-1].seen, means, strict=True)
    ]


def learned_values(module: "torch.nn.Module") -> str:
    """The parameters of an activation as text: "beta=1.02", "numerator=0.04 0.5 ..."; "" where it has none."""
    texts = []
    for name, parameter in module.named_parameters():
        texts.append(f"{name}={' '.join(repr(round(v, 6)) for v in parameter.detach().flatten().tolist())}")
    return "; ".join(texts)


def validation_rows(
    network: "torch.nn.Module",
    sites: Sequence[Site],
    loss_of_batch: "Callable[[torch.Tensor, torch.Tensor], torch.Tensor]",
    batches: "Iterable[tuple[torch.Tensor, torch.Tensor]]",
    number: int,
    run_id: str,
    epoch: int,
) -> list[dict[str, Any]]:
    """Rows of a look at all validation images: forward and backward in evaluation mode, weights as they are.

    batches: (images_NCHW, masks_NHW) on the network's device, of ``number`` images altogether. The gradient is that of
    the mean loss. The network is left in evaluation mode without gradients.
    """
    network.eval()
    network.zero_grad(set_to_none=True)
    probe = Probe(network, sites)
    for images_NCHW, masks_NHW in batches:
        with probe.watching():
            (loss_of_batch(images_NCHW, masks_NHW) * (len(images_NCHW) / number)).backward()
    probe.take_gradient_norms()
    network.zero_grad(set_to_none=True)
    return diagnostics_rows([probe], run_id, "val", epoch)


def summarised(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """One number for each question about the whole network, from the rows of one look.

    Shares are over all units. gradient_ratio is the gradient norm before the first call site over that before the
    last; gradient_weakest the smallest of all over that before the last: the skip connections of a U-Net give its first
    layers a short way, so that gradients vanish in the middle.
    """

    def share(name: str) -> float:
        known = [row for row in rows if not math.isnan(row[name])]
        units = sum(row["units"] for row in known)
        return sum(row[name] * row["units"] for row in known) / units if units else math.nan

    norms = [row["grad_norm"] for row in rows if not math.isnan(row["grad_norm"])]
    last = norms[-1] if norms and norms[-1] > 0 else math.nan
    return {
        **{name: share(name) for name in ("dead_output", "dead_gradient", "saturated")},
        "gradient_ratio": norms[0] / last if norms else math.nan,
        "gradient_weakest": min(norms) / last if norms else math.nan,
    }


def warnings_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a user should be told: many dead units, gradients that vanish or explode on their way to the first layer."""
    told = []
    summary = summarised(rows)
    for name, what in (("dead_output", "output 0"), ("dead_gradient", "gradient 0")):
        dying = sorted((row for row in rows if row[name] > DEAD_WARNING), key=lambda row: -row[name])
        if summary[name] > DEAD_WARNING or dying:
            where = ", ".join(f"{row['site']} ({row[name]:.0%})" for row in dying[:3])
            told.append(
                f"{summary[name]:.0%} of the hidden units are dead on the validation images ({what} at every pixel); "
                f"more than {DEAD_WARNING:.0%} at {len(dying)} of {len(rows)} call sites, most at {where}; "
                "diagnostics.png shows where"
            )
    ratio = summary["gradient_ratio"]
    if ratio < RATIO_WARNING[0] or ratio > RATIO_WARNING[1]:
        how = "vanish" if ratio < 1 else "explode"
        told.append(
            f"gradients {how}: before the first hidden activation they are {ratio:.2g} times as large as before the "
            "last one; diagnostics.png shows where"
        )
    if any(math.isinf(row["grad_norm"]) for row in rows):
        told.append("gradients explode: before some hidden activations they are not finite any more")
    if rows and all(row["grad_norm"] == 0 for row in rows if not math.isnan(row["grad_norm"])):
        told.append("no gradient reaches any hidden layer on the validation images")
    return told
