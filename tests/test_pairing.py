"""Which (activation, loss, head) mean something: each pair takes a training step, or is refused in one line."""

import dataclasses
import functools
import re
import subprocess
import sys
from collections.abc import Sequence

import pytest

from segexp.config import Choice, Config, alias_target, choice_config, mode_of, names_in, params
from segexp.config.canonical import CHOICES, identity, resolve
from segexp.config.compose import compose, hydra_session
from segexp.errors import UsageError

SETTINGS: dict[str, tuple[str, ...]] = {
    "binary": ("dataset.num_classes=2",),
    "softmax": ("dataset.num_classes=3", "head.mode=softmax"),
    "independent": ("dataset.num_classes=3", "head.mode=independent"),
}

EVERY_LOSS = (
    "ce bce nll focal mse brier l2 l1 mae smooth_l1 huber matching "
    "dice jaccard iou generalized_dice tversky focal_tversky log_cosh_dice lovasz dice_ce"
)
PROBABILITIES_ONLY = (
    "ce bce nll focal matching dice jaccard iou generalized_dice tversky focal_tversky log_cosh_dice lovasz dice_ce"
)

NONE = {"binary": "", "softmax": "bce", "independent": ""}
CURVED = {"binary": "", "softmax": "bce matching", "independent": ""}
VALUES = {"binary": PROBABILITIES_ONLY, "softmax": PROBABILITIES_ONLY, "independent": PROBABILITIES_ONLY}

REFUSED: dict[str, dict[str, str]] = {
    "sigmoid": NONE,
    "softmax": {"binary": EVERY_LOSS, "softmax": "bce", "independent": EVERY_LOSS},
    "tanh": NONE,
    "arctan": CURVED,
    "normal_cdf": CURVED,
    "probit": CURVED,
    "inverse_square_root": CURVED,
    "softsign": CURVED,
    "laplace": CURVED,
    "student_t3": CURVED,
    "student_t4": CURVED,
    "hyperbolic_secant": CURVED,
    "cloglog": CURVED,
    "loglog": CURVED,
    "hardtanh": CURVED,
    "hardsigmoid": CURVED,
    "minmax_linear": {"binary": "matching", "softmax": "bce matching", "independent": "matching"},
    "identity": VALUES,
    "linear": VALUES,
    "none": VALUES,
}
"""Every refusal there is: activation -> head -> losses. All other pairs train."""

CELLS = [
    pytest.param(activation, setting, id=f"{activation}-{setting}")
    for activation in names_in("activation")
    for setting in SETTINGS
]

ALIASES = [
    pytest.param(group, name, id=f"{group}-{name}")
    for group in ("activation", "loss")
    for name in names_in(group)
    if alias_target(group, name)[0] != name
]


@functools.cache
def composed(overrides: Sequence[str]) -> Config:
    with hydra_session():
        return compose(list(overrides))


def choice(group: str, name: str) -> Choice:
    return choice_config(group, name)(name=name)


def paired(activation: str, loss: str, setting: str) -> Config:
    """The resolved configuration of a pair. Raises UsageError."""
    raw = dataclasses.replace(
        composed(SETTINGS[setting]), activation=choice("activation", activation), loss=choice("loss", loss)
    )
    return resolve(raw)


def is_refused(activation: str, loss: str, setting: str) -> bool:
    try:
        paired(activation, loss, setting)
    except UsageError:
        return True
    return False


def train_one_step(config: Config) -> None:
    """A network of one convolution, head and loss put together as a run does; asserts that it learns."""
    import torch

    from segexp.activations.head import make_head
    from segexp.activations.output import OUTPUT_ACTIVATIONS, logit_channels
    from segexp.losses import LOSSES

    num_classes, mode = config.dataset.num_classes, mode_of(config)
    generator = torch.Generator().manual_seed(0)
    network = torch.nn.Conv2d(1, logit_channels(num_classes, mode), 3, padding=1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    # float64: where most pixels are clipped, float32 cannot show the loss falling.
    network.double()
    images = torch.randn(2, 1, 6, 6, generator=generator).double()
    target = torch.randint(num_classes, (2, 6, 6), generator=generator)
    head = make_head(OUTPUT_ACTIVATIONS[config.activation.name], mode, params(config.activation))
    loss_of = functools.partial(LOSSES[config.loss.name].function, **params(config.loss))
    before = [p.detach().clone() for p in network.parameters()]
    value = loss_of(head(network(images)), target)
    value.backward()
    assert value.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    activation = OUTPUT_ACTIVATIONS[config.activation.name]
    # A bias moves nothing where logits are scaled to the range of the batch, nor where all of a channel is clipped.
    moving = [p.grad is not None and bool(p.grad.count_nonzero()) for p in network.parameters()]
    assert all(moving) or (moving[0] and activation.clips)
    if config.loss.name == "matching":  # whose value is not what its gradient lowers
        return
    for lr in (0.02, 1e-3, 1e-5):  # the last step is short enough where the gradient is e^|x|, or ends at a clip
        with torch.no_grad():
            for parameter, old in zip(network.parameters(), before, strict=True):
                parameter.copy_(old - lr * (parameter.grad if parameter.grad is not None else 0))
        if loss_of(head(network(images)), target) < value:
            return
    raise AssertionError("no step along the gradient lowers the loss")


def test_table_names_every_activation() -> None:
    assert list(REFUSED) == names_in("activation")
    assert all(set(row) == set(SETTINGS) for row in REFUSED.values())
    assert names_in("loss") == [*EVERY_LOSS.split(), "sum"]


@pytest.mark.parametrize(("activation", "setting"), CELLS)
def test_trains_or_is_refused(activation: str, setting: str) -> None:
    """With every loss in turn."""
    for loss in EVERY_LOSS.split():
        if loss not in REFUSED[activation][setting].split():
            train_one_step(paired(activation, loss, setting))
            continue
        with pytest.raises(UsageError) as caught:
            paired(activation, loss, setting)
        line = str(caught.value)
        assert "\n" not in line
        typed = f"activation={activation} and loss={loss}"
        assert line.startswith((f"activation={activation} is ", f"loss={loss} is ", f"{typed} do not fit: "))


def test_refusal_of_a_pair_lists_exactly_the_partners_that_fit() -> None:
    with pytest.raises(UsageError) as caught:
        paired("identity", "dice", "binary")
    assert str(caught.value) == (
        "activation=identity and loss=dice do not fit: dice needs probabilities, but identity gives plain values; "
        "identity takes loss=mse|l1|smooth_l1|sum, "
        "dice takes activation=sigmoid|tanh|arctan|normal_cdf|inverse_square_root|softsign|laplace|student_t3|"
        "student_t4|hyperbolic_secant|cloglog|loglog|hardtanh|hardsigmoid|minmax_linear"
    )


@pytest.mark.parametrize("setting", SETTINGS)
def test_listed_partners_are_right_and_complete(setting: str) -> None:
    """What a refusal offers is accepted, and of the canonical names it leaves none out."""
    activations = [n for n in names_in("activation") if alias_target("activation", n)[0] == n]
    losses = [n for n in EVERY_LOSS.split() if alias_target("loss", n)[0] == n]
    refusals = 0
    for activation in activations:
        for loss in losses:
            try:
                paired(activation, loss, setting)
            except UsageError as error:
                refusals += 1
                (offered_losses,) = re.findall(rf"{activation} takes loss=(\S+),", str(error))
                (offered_activations,) = re.findall(rf"{loss} takes activation=(\S+)$", str(error))
                fitting = [n for n in losses if not is_refused(activation, n, setting)]
                assert [n for n in offered_losses.split("|") if n != "sum"] == fitting
                assert offered_activations.split("|") == [n for n in activations if not is_refused(n, loss, setting)]
    assert refusals == {"binary": 12, "independent": 12, "softmax": 11 + 13}[setting]


@pytest.mark.parametrize(
    ("activation", "loss", "setting", "line"),
    [
        (
            "softmax",
            "ce",
            "binary",
            "activation=softmax is activation=sigmoid for softmax heads only, and this head is binary "
            "(dataset.num_classes, head.mode): use activation=sigmoid, or a head it is for",
        ),
        (
            "softmax",
            "ce",
            "independent",
            "activation=softmax is activation=sigmoid for softmax heads only, and this head is independent "
            "(dataset.num_classes, head.mode): use activation=sigmoid, or a head it is for",
        ),
        (
            "arctan",
            "bce",
            "softmax",
            "loss=bce is loss=ce for binary or independent heads only, and this head is softmax "
            "(dataset.num_classes, head.mode): use loss=ce, or a head it is for",
        ),
    ],
)
def test_refusal_of_an_alias_names_the_cure(activation: str, loss: str, setting: str, line: str) -> None:
    with pytest.raises(UsageError) as caught:
        paired(activation, loss, setting)
    assert str(caught.value) == line


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(("group", "name"), ALIASES)
def test_alias_is_the_same_run(group: str, name: str, setting: str) -> None:
    canonical, _ = alias_target(group, name)
    partner = "mse" if group == "activation" else "sigmoid"
    alias, plain = (
        (n, partner, setting) if group == "activation" else (partner, n, setting) for n in (name, canonical)
    )
    if is_refused(*alias):
        assert not is_refused(*plain)
        return
    content = {"data": "x"}
    assert dataclasses.asdict(paired(*alias)) == dataclasses.asdict(paired(*plain))
    assert identity(paired(*alias), content) == identity(paired(*plain), content)


@pytest.mark.parametrize("group", ["activation", "loss"])
def test_unknown_name(group: str) -> None:
    nearest = {"activation": "arctan", "loss": "jaccard"}[group]
    with pytest.raises(UsageError, match=rf"^unknown {group} '{nearest}x'; did you mean {nearest}\?$"):
        alias_target(group, f"{nearest}x")
    raw = composed(())
    wrong = dataclasses.replace(choice(group, nearest), name=f"{nearest}x")
    raw = dataclasses.replace(raw, activation=wrong) if group == "activation" else dataclasses.replace(raw, loss=wrong)
    with pytest.raises(UsageError, match=rf"^unknown {group} '{nearest}x'; did you mean {nearest}\?$"):
        resolve(raw)


def test_head_follows_the_classes() -> None:
    """Two classes are one logit whatever is asked; one logit for more is refused."""
    for asked in CHOICES["head.mode"]:
        assert composed((f"head.mode={asked}",)).head.mode == "binary"
    with pytest.raises(UsageError, match=r"^head\.mode=binary is for two classes, dataset\.num_classes=3: use "):
        composed(("dataset.num_classes=3", "head.mode=binary"))


def test_command_line_refuses_the_same() -> None:
    assert composed(("activation=probit", "loss=iou")).activation.name == "normal_cdf"
    assert composed(("activation=probit", "loss=iou")).loss.name == "jaccard"
    with pytest.raises(UsageError, match=r"identity takes loss=mse\|l1\|smooth_l1\|sum"):
        composed(("activation=linear", "loss=bce"))
    with pytest.raises(UsageError, match="loss=bce is loss=ce for binary or independent heads only"):
        composed(("loss=bce", "dataset.num_classes=3"))


def test_refusing_does_not_import_torch() -> None:
    code = """
import dataclasses, sys
from segexp.config import choice_config, names_in
from segexp.config.canonical import resolve
from segexp.errors import UsageError
from segexp.config.compose import compose, hydra_session
refused = 0
with hydra_session():
    for overrides in SETTINGS.values():
        base = compose(list(overrides))
        for activation in names_in("activation"):
            for loss in [n for n in names_in("loss") if n != "sum"]:
                chosen = choice_config("activation", activation)(), choice_config("loss", loss)()
                try:
                    resolve(dataclasses.replace(base, activation=chosen[0], loss=chosen[1]))
                except UsageError:
                    refused += 1
print(refused, "torch" in sys.modules)
"""
    code = f"SETTINGS = {SETTINGS!r}\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = sum(len(losses.split()) for row in REFUSED.values() for losses in row.values())
    assert done.stdout.split() == [str(expected), "False"]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("activation", names_in("activation"))
def test_a_sum_is_refused_where_one_of_its_terms_is(activation: str, setting: str) -> None:
    """Every two neighbours of the registry, as one sum; the first that fits is trained."""
    trained = False
    losses = [n for n in EVERY_LOSS.split() if alias_target("loss", n)[0] == n]
    for first, second in zip(losses, [*losses[1:], losses[0]], strict=True):
        together = choice_config("loss", "sum")(name="sum", terms={first: 1, second: 0.5})  # type: ignore[call-arg]
        raw = dataclasses.replace(
            composed(SETTINGS[setting]), activation=choice("activation", activation), loss=together
        )
        if is_refused(activation, first, setting) or is_refused(activation, second, setting):
            with pytest.raises(UsageError, match=r"do not fit|for softmax heads only"):
                resolve(raw)
        else:
            config = resolve(raw)
            if not trained:
                train_one_step(config)
            trained = True
