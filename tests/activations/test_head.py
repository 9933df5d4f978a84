"""The head: what a `Prediction` says about every pixel, under each of the three head modes."""

import copy
from typing import Any

import pytest
import torch

from segexp.activations.head import (
    Head,
    LearnedOptions,
    Prediction,
    learn_options,
    learned_options,
    make_head,
    mean_prediction,
    prior_bias,
)
from segexp.activations.output import (
    OUTPUT_ACTIVATIONS,
    HeadMode,
    OutputActivation,
    head_mode,
    learnable_with,
    logit_channels,
)
from segexp.registry import NOT_NEGATIVE, Option, Range

CHANNELS: dict[HeadMode, int] = {"binary": 1, "independent": 3, "softmax": 4}
MAPS = [name for name, entry in OUTPUT_ACTIVATIONS.items() if entry.log_odds is not None]
VALUES_ONLY = [name for name in OUTPUT_ACTIVATIONS if name not in MAPS]
BINARY = [name for name in MAPS if "binary" in OUTPUT_ACTIVATIONS[name].modes]
PAIRS = [(name, mode) for name, entry in OUTPUT_ACTIVATIONS.items() for mode in entry.modes]
"""Every activation under every head mode in which it is defined."""
ODD = [name for name in BINARY if not OUTPUT_ACTIVATIONS[name].clips and name not in ("cloglog", "loglog")]
"""Symmetric maps that tell any two logits apart, decide at 0 and never saturate."""


def head_of(name: str, mode: HeadMode) -> Head:
    return make_head(OUTPUT_ACTIVATIONS[name], mode)


def fake(log_odds: object) -> OutputActivation:
    """An activation that is in no registry."""
    return OutputActivation("fake", log_odds, "", "", "", 1.0, "")  # type: ignore[arg-type]


def random_logits(mode: HeadMode, scale: float = 4.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(2, CHANNELS[mode], 5, 6, generator=generator)


def pixels(*columns: tuple[float, ...]) -> torch.Tensor:
    """Logits (1, K, 1, W): one column of K channels per pixel."""
    return torch.tensor(columns).T[None, :, None, :]


def chosen(prediction: Prediction) -> list[list[bool]]:
    """Per pixel, the decision for each foreground class."""
    decided: list[list[bool]] = prediction.foreground_NFHW()[0, :, 0].T.tolist()
    return decided


def ties(prediction: Prediction) -> list[bool]:
    tied: list[bool] = prediction.ties_NHW()[0, 0].tolist()
    return tied


@pytest.mark.parametrize(("num_classes", "asked", "mode", "channels"), [
    (2, "softmax", "binary", 1), (2, "independent", "binary", 1), (2, "binary", "binary", 1),
    (3, "softmax", "softmax", 3), (255, "independent", "independent", 254),
])  # fmt: skip
def test_mode_and_channels(num_classes: int, asked: str, mode: HeadMode, channels: int) -> None:
    assert head_mode(num_classes, asked) == mode
    assert logit_channels(num_classes, mode) == channels
    for unknown in ("binary", "multilabel", ""):
        with pytest.raises(ValueError, match="softmax or independent"):
            head_mode(3, unknown)


@pytest.mark.parametrize(("name", "mode"), PAIRS)
def test_activation_is_applied_once(name: str, mode: HeadMode) -> None:
    """Values are probabilities of phi(logits), or the logits without an activation; the logits are not changed."""
    logits = random_logits(mode)
    before = logits.clone()
    prediction = head_of(name, mode)(logits)
    log_odds = OUTPUT_ACTIVATIONS[name].log_odds
    assert (prediction.log_odds_NKHW is None) == (log_odds is None)
    if log_odds is None:
        assert torch.equal(prediction.values_NKHW, logits)
    else:
        once = log_odds(before)
        expected = once.softmax(dim=1) if mode == "softmax" else 1 / (1 + torch.exp(-once))
        assert torch.allclose(prediction.values_NKHW, expected, rtol=1e-5, atol=1e-7)
    assert prediction.mode == mode
    assert torch.equal(logits, before)
    assert torch.equal(prediction.logits_NKHW, before)
    foreground = (2, CHANNELS[mode] - (mode == "softmax"), 5, 6)
    assert prediction.evidence_NFHW().shape == prediction.foreground_NFHW().shape == foreground
    assert prediction.ties_NHW().shape == (2, 5, 6)
    assert prediction.foreground_NFHW().dtype == prediction.ties_NHW().dtype == torch.bool


@pytest.mark.parametrize("name", ODD)
def test_evidence_keeps_what_probabilities_round_away(name: str) -> None:
    prediction = head_of(name, "binary")(pixels((-1e-20,), (1e-20,), (1e-10,), (1e5,), (1e6,)))
    assert prediction.values_NKHW[0, 0, 0, :3].unique().tolist() == [0.5]
    assert (prediction.evidence_NFHW().flatten().diff() > 0).all()
    assert chosen(prediction) == [[False], [True], [True], [True], [True]]
    assert not any(ties(prediction))


@pytest.mark.parametrize("name", ODD)
def test_zero_is_a_tie_and_background(name: str) -> None:
    prediction = head_of(name, "binary")(pixels((0.0,), (-0.0,), (1e-30,)))
    assert ties(prediction) == [True, True, False]
    assert chosen(prediction) == [[False], [False], [True]]
    # One undecided channel is enough.
    several = head_of(name, "independent")(pixels((0.0, 2.0), (1.0, 2.0), (-1.0, 0.0), (-1.0, -2.0)))
    assert ties(several) == [True, False, True, False]
    assert chosen(several) == [[False, True], [True, True], [False, False], [False, False]]


@pytest.mark.parametrize("name", OUTPUT_ACTIVATIONS)
def test_softmax_decides_for_the_largest_and_ties_are_equal_best(name: str) -> None:
    """Equal losers are no tie; a tied pixel still gets one class, the first."""
    prediction = head_of(name, "softmax")(pixels((1.0, 1.0, 0.0), (0.0, 2.0, 2.0), (0.0, 0.0, 3.0), (0.0, 0.0, 0.0)))
    assert ties(prediction) == [True, True, False, True]
    assert chosen(prediction) == [[False, False], [True, False], [False, True], [False, False]]
    if name not in ("hardtanh", "taylor_softmax"):  # which do not rise everywhere
        decided = head_of(name, "softmax")(pixels((3.0, 1.0, -2.0), (-5.0, -1.0, -2.0), (0.0, 0.1, 0.2)))
        assert chosen(decided) == [[False, False], [True, False], [False, True]]
        assert not any(ties(decided))


@pytest.mark.parametrize("name", ODD)
def test_softmax_evidence_is_one_versus_rest(name: str) -> None:
    """ln p_c - ln(1 - p_c), positive exactly where p_c > 1/2; then the class is the chosen one."""
    prediction = head_of(name, "softmax")(random_logits("softmax", 1.0).double())
    p = prediction.values_NKHW[:, 1:]
    evidence = prediction.evidence_NFHW()
    assert torch.allclose(evidence, torch.log(p) - torch.log1p(-p), rtol=1e-9, atol=1e-9)
    assert torch.equal(evidence > 0, p > 0.5)
    assert prediction.foreground_NFHW()[evidence > 0].all()
    assert 0 < (evidence > 0).sum() < prediction.foreground_NFHW().sum()
    # Far out it is finite and ordered.
    far = pixels((0.0, -1e6, 0.0), (0.0, -1e4, 0.0), (0.0, 1e4, 0.0), (0.0, 1e5, 0.0), (-1e6, 1e6, -1e6))
    evidence = head_of(name, "softmax")(far).evidence_NFHW()
    assert evidence.isfinite().all()
    assert (evidence[0, 0, 0].diff() > 0).all()


@pytest.mark.parametrize("mode", ["binary", "independent"])
@pytest.mark.parametrize("name", VALUES_ONLY)
def test_values_decide_above_one_half(name: str, mode: HeadMode) -> None:
    column = [-3.0, 0.0, 0.25, 0.5 - 2**-25, 0.5, 0.5 + 2**-24, 0.75, 1.0, 7.0]
    logits = pixels(*[(x,) * (CHANNELS[mode]) for x in column]).float()
    prediction = head_of(name, mode)(logits)
    expected = torch.tensor([x > 0.5 for x in logits[0, 0, 0].tolist()])
    assert torch.equal(prediction.foreground_NFHW()[0, -1, 0], expected)
    assert torch.equal(prediction.evidence_NFHW()[0, -1, 0] > 0, expected)
    assert ties(prediction) == [x == 0.5 for x in logits[0, 0, 0].tolist()]


@pytest.mark.parametrize("name", VALUES_ONLY)
def test_softmax_evidence_of_values_is_the_lead_over_the_best_other(name: str) -> None:
    prediction = head_of(name, "softmax")(pixels((0.5, 2.0, -1.0), (4.0, 2.0, 1.0)))
    assert prediction.evidence_NFHW()[0, :, 0].T.tolist() == [[1.5, -3.0], [-2.0, -3.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "mode"), PAIRS)
def test_computed_in_float32_or_better(name: str, mode: HeadMode, dtype: torch.dtype) -> None:
    """Half-precision logits give, to the bit, what the same numbers in float32 give."""
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    logits = random_logits(mode, 100.0).to(dtype)
    head = head_of(name, mode)
    prediction, expected = head(logits), head(logits.to(exact))
    assert prediction.logits_NKHW.dtype == exact
    assert torch.equal(prediction.values_NKHW, expected.values_NKHW)
    assert torch.equal(prediction.evidence_NFHW(), expected.evidence_NFHW())


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_is_off_inside(half: torch.dtype) -> None:
    """A map that multiplies matrices, which autocast would lower, is computed in float32 all the same."""
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    logits = torch.linspace(-2, 2, 16).reshape(1, 4, 2, 2)
    head = make_head(fake(lambda x: x @ turn), "softmax")
    with torch.autocast("cpu", dtype=half):
        assert (logits @ turn).dtype == half
        prediction = head(logits.to(half))
        assert torch.is_autocast_enabled("cpu")
    assert prediction.log_odds_NKHW is not None
    assert prediction.log_odds_NKHW.dtype == torch.float32
    assert torch.equal(prediction.log_odds_NKHW, logits.to(half).float() @ turn)


@pytest.mark.parametrize(("name", "mode"), PAIRS)
def test_mean_prediction_has_the_mean_probability(name: str, mode: HeadMode) -> None:
    head = head_of(name, mode)
    several = [head(scale * random_logits(mode).double().roll(n, 2)) for n, scale in enumerate((0.2, 0.5, -0.3))]
    mean = mean_prediction(several)
    expected = torch.stack([p.values_NKHW for p in several]).mean(0)
    torch.testing.assert_close(mean.values_NKHW, expected, rtol=1e-9, atol=1e-12)
    assert (mean.log_odds_NKHW is None) == (several[0].log_odds_NKHW is None)


def test_mean_prediction_leaves_no_tie_next_to_zero() -> None:
    prediction = head_of("sigmoid", "binary")(pixels((1e-8,), (-1e-20,), (0.0,)))
    mean = mean_prediction([prediction] * 4)
    assert mean.evidence_NFHW().flatten().tolist()[0] == pytest.approx(1e-8, rel=1e-3)
    assert mean.log_odds_NKHW is not None
    assert mean.log_odds_NKHW.dtype == torch.float32


@pytest.mark.parametrize("mode", ["binary", "independent"])
def test_mean_prediction_of_one_mind_keeps_its_tail(mode: HeadMode) -> None:
    prediction = head_of("normal_cdf", mode)(random_logits(mode, 100.0))
    mean = mean_prediction([prediction] * 4)
    torch.testing.assert_close(mean.log_odds_NKHW, prediction.log_odds_NKHW)
    assert torch.equal(mean.foreground_NFHW(), prediction.foreground_NFHW())


@pytest.mark.parametrize(("name", "mode"), [(n, mode) for n, mode in PAIRS if not OUTPUT_ACTIVATIONS[n].per_batch])
def test_prior_bias_starts_at_the_prior(name: str, mode: HeadMode) -> None:
    """Every logit at its bias: the head gives the classes' shares back, with a slope as without."""
    prior = {"binary": [0.01], "independent": [0.2, 0.03, 0.4], "softmax": [0.7, 0.2, 0.06, 0.04]}[mode]
    for slope in ("native", "matched", "3.0"):
        params = {"slope": slope, "prior_bias_cap": 1e6}
        found = prior_bias(OUTPUT_ACTIVATIONS[name], mode, prior, params)
        assert not found.capped
        assert found.prior_K == tuple(prior)
        bias = torch.tensor(found.bias_K, dtype=torch.float64).view(1, -1, 1, 1)
        values = make_head(OUTPUT_ACTIVATIONS[name], mode, params)(bias).values_NKHW.flatten().tolist()
        assert values == pytest.approx(prior, rel=1e-6)


def test_prior_bias_is_capped_and_says_so() -> None:
    softsign = prior_bias(OUTPUT_ACTIVATIONS["softsign"], "binary", [0.01], {"prior_bias_cap": 10.0})
    assert (softsign.bias_K, softsign.capped) == ((-10.0,), True)
    free = prior_bias(OUTPUT_ACTIVATIONS["softsign"], "binary", [0.01], {})
    assert free.bias_K[0] == pytest.approx(-49)
    assert not free.capped
    for impossible in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match=str(impossible)):
            prior_bias(OUTPUT_ACTIVATIONS["sigmoid"], "independent", [0.1, impossible], {})


# Learned options


def learned_of(name: str, **params: Any) -> Any:
    return LearnedOptions(learnable_with(OUTPUT_ACTIVATIONS[name], params), params)


@pytest.mark.parametrize(("name", "mode"), [(n, mode) for n, mode in PAIRS if not OUTPUT_ACTIVATIONS[n].per_batch])
def test_a_learned_slope_starts_as_native_and_is_the_slope(name: str, mode: HeadMode) -> None:
    """Bit-equal at its start; after any step F(s x), with a gradient."""
    learned, logits = learned_of(name, slope="learned"), random_logits(mode)
    head = make_head(OUTPUT_ACTIVATIONS[name], mode, {"slope": "learned"}, learned=learned)
    assert torch.equal(head(logits).values_NKHW, head_of(name, mode)(logits).values_NKHW)
    with torch.no_grad():
        learned.slope.fill_(torch.tensor(0.4).log())
    assert learned.numbers()["slope"] == pytest.approx(0.4)
    values = head(logits).values_NKHW
    torch.testing.assert_close(values, make_head(OUTPUT_ACTIVATIONS[name], mode, {"slope": 0.4})(logits).values_NKHW)
    values.square().mean().backward()
    assert learned.slope.grad is not None
    assert learned.slope.grad.isfinite()
    assert learned.slope.grad != 0


def test_learned_options_stay_in_their_range() -> None:
    """Whatever the optimizer does, and from the value that is given."""
    learned = learned_of("learned_tail", slope="learned", tail=0.3)
    assert learned.numbers() == {"tail": pytest.approx(0.3), "slope": 1.0}
    assert learned_of("learned_tail", slope="2").numbers() == {"tail": 0.5}
    head = make_head(OUTPUT_ACTIVATIONS["learned_tail"], "binary", learned=learned)
    for raw in (-80.0, -5.0, 5.0, 80.0):
        with torch.no_grad():
            learned.tail.fill_(raw)
        assert 0 <= learned.numbers()["tail"] <= 1
        learned.zero_grad()
        prediction = head(random_logits("binary", 1e3))
        assert prediction.values_NKHW.isfinite().all()
        prediction.values_NKHW.mean().backward()
        assert all(p.grad is not None and p.grad.isfinite() for p in learned.parameters())


@pytest.mark.parametrize(
    ("between", "start", "low"), [(Range(), -3.0, -1e6), (Range(1, 3), 2.5, 1), (NOT_NEGATIVE, 2, 0)]
)
def test_a_learned_option_of_any_range(between: Range, start: float, low: float) -> None:
    option = Option("shift", float, start, range=between)
    entry = OutputActivation("fake", None, "", "", "", 1.0, "", learnable=("shift",), options=(option,))
    learned: Any = LearnedOptions(entry, {})
    assert learned.numbers()["shift"] == pytest.approx(start)
    with torch.no_grad():
        learned.shift.fill_(-1e3)
    assert low <= learned.numbers()["shift"] <= start
    if between != Range():
        with pytest.raises(ValueError, match=r"activation\.shift=.* must start above"):
            LearnedOptions(entry, {"shift": between.low})


def test_a_copy_of_a_network_has_learned_options_of_its_own() -> None:
    """A copied network and its head share the copy, on the CPU as elsewhere."""
    network = torch.nn.Conv2d(1, 1, 1)
    entry, params = OUTPUT_ACTIVATIONS["arctan"], {"slope": "learned"}
    learn_options(network, entry, params)
    whole: dict[str, Any] = {
        "network": network,
        "head": make_head(entry, "binary", params, learned=learned_options(network)),
    }
    copied = copy.deepcopy(whole)
    with torch.no_grad():
        copied["network"].output_options.slope.fill_(1.0)
    logits = random_logits("binary")
    assert whole["head"](logits).slope == 1
    assert float(copied["head"](logits).slope.detach()) == pytest.approx(2.718281828)
    plain = torch.nn.Conv2d(1, 1, 1)
    learn_options(plain, entry, {"slope": "2"})
    assert learned_options(plain) is None
    assert len(list(plain.parameters())) == 2


def test_prior_bias_of_taylor_softmax_has_no_logit_below_zero() -> None:
    """Where it rises, although shares of 1 % have log-odds that its polynomial does not reach."""
    found = prior_bias(OUTPUT_ACTIVATIONS["taylor_softmax"], "softmax", [0.9, 0.09, 0.01], {})
    assert min(found.bias_K) == pytest.approx(0, abs=1e-7)
