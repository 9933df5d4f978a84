"""What holds for every activation, hidden and output, at any numbers. An exception is named, and shown to be one."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import Scene, repeatable, scenes

from segexp.activations.head import logit_of
from segexp.activations.hidden import HIDDEN_ACTIVATIONS, function_names, make_hidden
from segexp.activations.output import OUTPUT_ACTIVATIONS

ASYMMETRIC = ("cloglog", "loglog", "taylor_softmax", "hardtanh")
"""F(-x) is not 1 - F(x): by definition, or, of the last, because it is symmetric about 1/2."""

FALLING = ("taylor_softmax",)
"""A polynomial of the logit, which is least at -1. All others never fall."""


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Vectors and single numbers are computed by other instructions."""
    return torch.allclose(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", OUTPUT_ACTIVATIONS)
def test_output(name: str) -> None:
    """Probabilities; pixels, images and classes in any order; symmetry; never falling; one logit as two classes."""
    entry = OUTPUT_ACTIVATIONS[name]

    @repeatable(10)
    @given(scenes([(name, mode) for mode in entry.modes]), st.integers(0, 2**16), st.sampled_from([0.01, 1.0, 1e5]))
    def check(scene: Scene, seed: int, scale: float) -> None:
        scene = replace(scene, logits=scale * scene.logits)
        values, mode, x = scene.prediction.values_NKHW, scene.mode, scene.logits
        generator = torch.Generator().manual_seed(seed)
        N, K, H, W = x.shape
        images, channels, pixels = (torch.randperm(n, generator=generator) for n in (N, K, H * W))

        def moved(y: torch.Tensor) -> torch.Tensor:
            return y[images][:, channels].flatten(2)[..., pixels].view(y.shape)

        assert close(replace(scene, logits=moved(x)).prediction.values_NKHW, moved(values))
        if entry.log_odds is None:
            assert torch.equal(values, x)
            return
        assert ((values >= 0) & (values <= 1)).all()
        if mode == "softmax":
            assert close(values.sum(1), torch.ones(N, H, W, dtype=torch.float64))
        else:
            assert torch.equal(scene.prediction.foreground_NFHW(), scene.prediction.evidence_NFHW() > 0)
            assert (scene.prediction.foreground_NFHW() >= (values > 0.5)).all()
        if name not in ASYMMETRIC and mode != "softmax":
            mirrored = replace(scene, logits=-x).prediction
            assert close(mirrored.evidence_NFHW(), -scene.prediction.evidence_NFHW())
        if not entry.per_batch:
            alone = replace(scene, logits=x[:1, :, :1, :1]).prediction.values_NKHW
            assert close(alone, values[:1, :, :1, :1])
        if name not in FALLING and not entry.per_batch:
            more = x.clone()
            more[:, 0] += torch.rand(N, H, W, generator=generator, dtype=torch.float64) * scale
            change = replace(scene, logits=more).prediction.values_NKHW - values
            assert (change[:, 0] >= -1e-14).all()
            assert (change[:, 1:] <= 1e-14).all()
        if mode == "binary" and not entry.per_batch:
            half = logit_of(entry, torch.zeros(1)).expand_as(x)
            two = replace(scene, mode="softmax", logits=torch.cat((half, x), 1)).prediction
            assert close(two.values_NKHW[:, 1:], values)

    check()


def test_exceptions_are_needed() -> None:
    def p(name: str, *logits: float) -> torch.Tensor:
        mode: Any = "binary" if "binary" in OUTPUT_ACTIVATIONS[name].modes else "softmax"
        x = torch.tensor(logits, dtype=torch.float64).view(1, 1, 1, -1).expand(1, 1 if mode == "binary" else 2, 1, -1)
        return Scene(name, mode, x, torch.zeros(1, 1, len(logits))).prediction._scores_NKHW[0, 0, 0]

    for name in ASYMMETRIC:
        assert not close(p(name, 0.3), -p(name, -0.3)), name
    for name in FALLING:
        assert (p(name, -9.0, -1.0).diff() < 0).all()
    for name in (n for n, entry in OUTPUT_ACTIVATIONS.items() if entry.per_batch):
        assert p(name, 0.2, 0.3, 0.4, 5.0)[1] != p(name, 0.2, 0.3, 0.4)[1]


@pytest.mark.parametrize("name", function_names())
def test_hidden(name: str) -> None:
    """Each number by itself, wherever it stands; odd where declared."""
    module = make_hidden(name, {}).double().eval()
    f = torch.no_grad()(lambda x: module(x[:, None, None, None]).flatten())

    @repeatable(6)
    @given(st.integers(0, 2**16), st.integers(1, 40), st.sampled_from([0.1, 1.0, 10.0, 1e4]))
    def check(seed: int, number: int, scale: float) -> None:
        generator = np.random.default_rng(seed)
        x, order = torch.from_numpy(scale * generator.normal(size=number)), generator.permutation(number)
        y = f(x)
        assert y.isfinite().all()
        assert close(f(x[order]), y[order])
        assert close(f(x[:1]), y[:1])
        if HIDDEN_ACTIVATIONS[name].zero_centred:
            assert close(f(-x), -y)

    check()
