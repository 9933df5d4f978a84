"""diagnostics.csv: what the hidden activations of a run do, along the depth of the network."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

import torch

from segexp.activations.head import learned_options
from segexp.evaluation.pictures import DEAD_WARNING
from segexp.models.trace import Application, site_names
from segexp.records.process import heed_interrupts

EVERY = 50
"""A training step in so many is diagnosed. Diagnosing costs less than a step, so the total is below 2 %."""

SAMPLE = 8192  # about as many inputs of a call site are sampled for the saturated share
SATURATED = 0.01  # an input is saturated where |f'| is below this share of max |f'|
RATIO_WARNING = (1e-3, 1e3)  # range of the gradient ratio (see `summarised`) outside which a run warns

LISTED = 10  # values of a learned parameter that are listed; of more (one per channel) mean and spread are given

VALUES = ("dead_output", "dead_gradient", "saturated", "mean", "sd", "grad_norm")
"""Measured columns of diagnostics.csv, each a number per call site."""

OUTPUT = "output"
"""Site of an output activation with learned options, of which nothing else is measured."""


@dataclass(frozen=True)
class Site:
    """One call site of a hidden activation: the ``turn``-th call of the module at ``path`` in a forward pass.

    name: does not depend on the activation. depth: its position in the pass, from 1. part: encoder or decoder. feeds:
    paths of the layers whose outputs reach it. channel_dim: dimension of the units.
    """

    name: str
    depth: int
    part: str
    path: str
    turn: int
    feeds: tuple[str, ...]
    channel_dim: int


def sites_of(applications: Sequence[Application]) -> list[Site]:
    """The call sites that can be diagnosed, in order: all except functions that the architecture calls directly."""
    sites = []
    calls: Counter[str] = Counter()
    for depth, (name, found) in enumerate(zip(site_names(applications), applications, strict=True), start=1):
        if found.kind == "function":
            continue
        # A replacement holds a module per call; a module of the architecture may be called several times.
        path = f"{found.module}.{found.turn}" if found.kind == "replaced" else found.instance
        turn = calls[path]
        calls[path] += 1
        part = "encoder" if f"{found.module}.".startswith("encoder.") else "decoder"
        feeds = tuple(feed.layer for feed in found.feeds)
        sites.append(Site(name, depth, part, path, turn, feeds, found.channel_dim))
    return sites


class ActivationProbe:
    """Measures every call site while `watching`, over one or several batches. All numbers stay on the device.

    units: channels of each call site, 0 until it was seen.
    """

    def __init__(self, network: torch.nn.Module, sites: Sequence[Site]) -> None:
        self.network = network
        self.sites = sites
        self.units = [0] * len(sites)
        self._weights: Any = 0.0
        self._sums: Any = 0.0
        self._outputs: dict[int, torch.Tensor] = {}
        self._gradients: dict[int, torch.Tensor] = {}
        self._grad_norms: dict[int, torch.Tensor] = {}
        self._samples: dict[int, torch.Tensor] = {}
        self._moments: dict[int, tuple[int, torch.Tensor, torch.Tensor]] = {}
        self._calls: Counter[str] = Counter()
        self._numbers = {(site.path, site.turn): number for number, site in enumerate(sites)}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch one forward pass, and the backward pass inside the block."""
        self._calls.clear()
        handles = []
        for path in dict.fromkeys(site.path for site in self.sites):
            module = self.network.get_submodule(path)
            handles.append(module.register_forward_pre_hook(self._before(path)))
            handles.append(module.register_forward_hook(self._after(path)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self._add_up()

    def _before(self, path: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, inputs: Any) -> None:
            number = self._numbers.get((path, self._calls[path]))
            if number is None:  # it is called more often than was seen
                return
            x = inputs[0]
            # Copied, because an activation may work in place.
            channel_dim = self.sites[number].channel_dim
            sample_PC = _sample(x.detach(), channel_dim).float().clone()
            self._samples[number] = sample_PC[..., None, None] if channel_dim == 1 else sample_PC
            if x.requires_grad:
                x.register_hook(lambda gradient: self._keep_largest(self._gradients, number, gradient.detach()))

        return hook

    def _after(self, path: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
            number = self._numbers.get((path, self._calls[path]))
            self._calls[path] += 1
            if number is None:
                return
            y = output.detach()
            self._keep_largest(self._outputs, number, y)
            self.units[number] = len(self._outputs[number])
            self._moments[number] = (len(y), *torch.var_mean(y.float(), correction=0))

        return hook

    def _keep_largest(self, kept: dict[int, torch.Tensor], number: int, values: torch.Tensor) -> None:
        """Update the largest absolute value per unit."""
        channel = self.sites[number].channel_dim % values.dim()
        now_C = torch.linalg.vector_norm(values, ord=math.inf, dim=[d for d in range(values.dim()) if d != channel])
        kept[number] = torch.maximum(kept[number], now_C) if number in kept else now_C

    def _add_up(self) -> None:
        """Add one pass to the sums, all call sites at once: fewer operators cost less."""
        if not self._moments:
            return
        modules = {n: self.network.get_submodule(self.sites[n].path) for n in self._samples}
        saturated = _saturated({n: (modules[n], sample) for n, sample in self._samples.items()})
        zero = torch.zeros((), device=next(iter(saturated.values())).device)
        counts = [self._moments[n][0] if n in self._moments else 0 for n in range(len(self.sites))]
        weights = torch.tensor(counts, dtype=torch.float32).to(zero.device, non_blocking=True)[:, None]
        moments = [self._moments.get(n, (0, zero, zero)) for n in range(len(self.sites))]
        mean = torch.stack([moment[2] for moment in moments])
        square = torch.stack([moment[1] for moment in moments]) + mean * mean
        shares = torch.stack([saturated.get(n, zero) for n in range(len(self.sites))])
        self._sums = self._sums + weights * torch.stack([shares, mean, square], dim=1)
        self._weights = self._weights + weights
        self._samples.clear()
        self._moments.clear()

    def take_gradient_norms(self) -> None:
        """Take the present gradient norms of the weights of the layers before each call site."""
        norms: dict[str, torch.Tensor] = {}
        for layer in {layer for site in self.sites for layer in site.feeds}:
            weight = getattr(self.network.get_submodule(layer), "weight", None)
            if weight is not None and weight.grad is not None:
                norms[layer] = torch.linalg.vector_norm(weight.grad)
        for number, site in enumerate(self.sites):
            found = [norms[layer] for layer in site.feeds if layer in norms]
            if found:
                several = len(found) > 1
                self._grad_norms[number] = torch.linalg.vector_norm(torch.stack(found)) if several else found[0]

    def values(self) -> torch.Tensor:
        """(sites, `VALUES`) on the device, NaN where nothing was measured."""
        device = next(self.network.parameters()).device
        nan = torch.full((), math.nan, device=device)
        numbers = range(len(self.sites))
        if not any(self.units):
            return nan.expand(len(self.sites), len(VALUES))
        saturated, mean, square = (self._sums / self._weights).unbind(dim=1)  # 0 / 0, NaN, where nothing was seen
        sd = (square - mean * mean).clamp_min(0).sqrt()
        grad_norm = torch.stack([self._grad_norms.get(n, nan).float() for n in numbers])
        dead = [self._shares_of_zeros(kept, device) for kept in (self._outputs, self._gradients)]
        return torch.stack([*dead, saturated, mean, sd, grad_norm], dim=1)

    def _shares_of_zeros(self, kept: dict[int, torch.Tensor], device: torch.device) -> torch.Tensor:
        """(sites,) the share of units whose largest absolute value is 0."""
        shares = torch.full((len(self.sites),), math.nan, device=device)
        if kept:
            numbers = torch.tensor(list(kept))
            ids = torch.repeat_interleave(numbers, torch.tensor([len(v) for v in kept.values()]))
            units = torch.bincount(ids, minlength=len(self.sites)).to(device, non_blocking=True)
            zeros = (torch.cat([v.float() for v in kept.values()]) == 0).float()
            dead = torch.zeros_like(shares).index_add_(0, ids.to(device, non_blocking=True), zeros)
            shares = dead / units  # 0 / 0, NaN, where nothing was seen
        return shares


def _saturated(sampled: Mapping[int, tuple[torch.nn.Module, torch.Tensor]]) -> dict[int, torch.Tensor]:
    """Share of each call site's sample, (P, C) or (P, C, 1, 1), where |f'| is below `SATURATED` max |f'|."""
    # Sites that share a function without parameters or buffers are evaluated together.
    together: dict[Any, list[int]] = {}
    for number, (module, _) in sampled.items():
        own = bool(module.state_dict())
        together.setdefault(number if own else (type(module), repr(module)), []).append(number)
    shares = {}
    for members in together.values():
        module, first = sampled[members[0]]
        alone = len(members) == 1
        sample = first if alone else torch.cat([sampled[n][1].flatten() for n in members])
        # max |f'| may lie outside the sampled inputs.
        grid = torch.linspace(-8, 8, 65, device=sample.device)
        grid = grid.reshape(-1, *[1] * (sample.dim() - 1)).expand(-1, *sample.shape[1:])
        slope = _slope(module, torch.cat([sample, grid]))
        below = (slope[: len(sample)] < SATURATED * slope.amax()).float()
        parts = [below] if alone else below.split([sampled[n][1].numel() for n in members])
        shares.update({n: part.mean() for n, part in zip(members, parts, strict=True)})
    return shares


def _slope(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """|f'(x)|, element by element, in evaluation mode, so that no random numbers are drawn."""
    training, module.training = module.training, False
    with torch.enable_grad():
        leaf = x.requires_grad_()
        # A copy, because an activation may work in place; .forward, so that the hooks are not called.
        y = module.forward(leaf.clone())
        slope: torch.Tensor = torch.autograd.grad(y.sum(), leaf)[0].abs()
    module.training = training
    return slope


def _sample(x: torch.Tensor, channel_dim: int) -> torch.Tensor:
    """(P, C) of about `SAMPLE` elements, on a regular grid over images and pixels."""
    moved = x.movedim(channel_dim, -1)
    per_unit = max(1, SAMPLE // moved.shape[-1])
    share = per_unit ** (1 / max(moved.dim() - 1, 1))
    steps = tuple(slice(None, None, max(1, int(extent / share))) for extent in moved.shape[:-1])
    return moved[steps].reshape(-1, moved.shape[-1])


def diagnostics_rows(probes: Sequence[ActivationProbe], run_id: str, split: str, epoch: int) -> list[dict[str, Any]]:
    """Rows of diagnostics.csv: the mean over the probes, [] without any. Reads from the device.

    split: the images that were seen, train or val (column ``probe``).
    """
    if not probes:
        return []
    means = torch.stack([probe.values() for probe in probes]).nanmean(dim=0).tolist()
    network = probes[-1].network
    rows = [
        {
            "run_id": run_id,
            "site": site.name,
            "depth": site.depth,
            "part": site.part,
            "probe": split,
            "epoch": epoch,
            "units": units,
            **dict(zip(VALUES, values, strict=True)),
            "learned": learned_values(network.get_submodule(site.path)),
        }
        for site, units, values in zip(probes[-1].sites, probes[-1].units, means, strict=True)
    ]
    if learned := learned_options(network):
        depth = max((site.depth for site in probes[-1].sites), default=0) + 1
        row = {"run_id": run_id, "site": OUTPUT, "depth": depth, "part": "head", "probe": split, "epoch": epoch}
        text = "; ".join(f"{name}={round(value, 6)!r}" for name, value in learned.numbers().items())
        rows.append({**row, "units": 0, **dict.fromkeys(VALUES, math.nan), "learned": text})
    return rows


def learned_values(module: torch.nn.Module) -> str:
    """The parameters of an activation as text: "beta=1.02", "numerator=0.04 0.5 ..."; "" where it has none.

    Of more than `LISTED` values: "weight: mean=0.25 sd=0.031 n=64" (sd: of the population).
    """
    values = {name: parameter.detach().flatten().tolist() for name, parameter in module.named_parameters()}
    return "; ".join(
        f"{name}={' '.join(repr(round(v, 6)) for v in several)}"
        if len(several) <= LISTED
        else f"{name}: mean={fmean(several):.6g} sd={pstdev(several):.6g} n={len(several)}"
        for name, several in values.items()
    )


def validation_rows(
    network: torch.nn.Module,
    sites: Sequence[Site],
    loss_of_batch: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    number: int,
    run_id: str,
    epoch: int,
) -> list[dict[str, Any]]:
    """Rows of diagnostics.csv for all validation images: forward and backward in evaluation mode, without an update.

    batches: (images_NCHW, masks_NHW) on the network's device, ``number`` images in total. The gradient is that of the
    mean loss. The network is left in evaluation mode without gradients.
    """
    network.eval()
    network.zero_grad(set_to_none=True)
    probe = ActivationProbe(network, sites)
    for images_NCHW, masks_NHW in batches:
        heed_interrupts()
        with probe.watching():
            (loss_of_batch(images_NCHW, masks_NHW) * (len(images_NCHW) / number)).backward()
    probe.take_gradient_norms()
    network.zero_grad(set_to_none=True)
    return diagnostics_rows([probe], run_id, "val", epoch)


def summarised(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The ``diagnostics`` of run.json: one number per question, from the rows of one split and epoch.

    Shares are over all units of the network. gradient_ratio: gradient norm before the first call site divided by that
    before the last. gradient_weakest: the smallest norm divided by the last. They differ in a U-Net, whose skip
    connections reach the first layers directly, so that gradients vanish in the middle.
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
    """Warnings about dead units, and about gradients that vanish or explode towards the first layer."""
    warnings = []
    rows = [row for row in rows if row["site"] != OUTPUT]
    summary = summarised(rows)
    share = {row["site"]: max(row["dead_output"], row["dead_gradient"]) for row in rows}
    dying = sorted((site for site in share if share[site] > DEAD_WARNING), key=lambda site: -share[site])
    if dying:
        where = ", ".join(f"{site} ({share[site]:.0%})" for site in dying[:3])
        warnings.append(
            f"more than {DEAD_WARNING:.0%} of the hidden units are dead at {len(dying)} of {len(rows)} call sites, "
            f"most at {where}. Of all units, {summary['dead_output']:.0%} output 0 at every pixel of the validation "
            f"images and {summary['dead_gradient']:.0%} have gradient 0; see diagnostics.png"
        )
    ratio = summary["gradient_ratio"]
    if ratio < RATIO_WARNING[0] or ratio > RATIO_WARNING[1]:
        warnings.append(
            f"gradients {'vanish' if ratio < 1 else 'explode'}: before the first hidden activation they are "
            f"{ratio:.2g} times as large as before the last one; see diagnostics.png"
        )
    if any(math.isinf(row["grad_norm"]) for row in rows):
        warnings.append("gradients explode: before some hidden activations they are not finite")
    if rows and all(row["grad_norm"] == 0 for row in rows if not math.isnan(row["grad_norm"])):
        warnings.append("no gradient reaches any hidden layer on the validation images")
    return warnings
