"""Which (activation, loss, head) mean something: each pair takes a training step, or is refused in one line."""

import dataclasses
import functools
import re
import subprocess
import sys
from collections.abc import Sequence

import pytest

from segexp.config import (
    CHOICES,
    Choice,
    Config,
    alias_target,
    choice_config,
    identity,
    mode_of,
    names_in,
    params,
    resolve,
)
from segexp.errors import UsageError
from segexp.launch.compose import compose, hydra_session

SETTINGS: dict[str, tuple[str, ...]] = {
    "binary": ("dataset.num_classes=2",),
    "softmax": ("dataset.num_classes=3", "head.mode=softmax"),
    "independent": ("dataset.num_classes=3", "head.mode=independent"),
}

EVERY_LOSS = "ce bce nll mse brier l2 dice jaccard iou dice_ce"
PROBABILITIES_ONLY = "ce bce nll dice jaccard iou dice_ce"

REFUSED: dict[str, dict[str, str]] = {
    "sigmoid": {"binary": "", "softmax": "bce", "independent": ""},
    "softmax": {"binary": EVERY_LOSS, "softmax": "bce", "independent": EVERY_LOSS},
    "arctan": {"binary": "", "softmax": "bce", "independent": ""},
    "normal_cdf": {"binary": "", "softmax": "bce", "independent": ""},
    "probit": {"binary": "", "softmax": "bce", "independent": ""},
    "inverse_square_root": {"binary": "", "softmax": "bce", "independent": ""},
    "softsign": {"binary": "", "softmax": "bce", "independent": ""},
    "tanh": {"binary": "", "softmax": "bce", "independent": ""},
    "identity": {"binary": PROBABILITIES_ONLY, "softmax": PROBABILITIES_ONLY, "independent": PROBABILITIES_ONLY},
    "linear": {"binary": PROBABILITIES_ONLY, "softmax": PROBABILITIES_ONLY, "independent": PROBABILITIES_ONLY},
    "none": {"binary": PROBABILITIES_ONLY, "softmax": PROBABILITIES_ONLY, "independent": PROBABILITIES_ONLY},
}
"""Every refusal there is: activation -> head -> losses. All other pairs train."""

CELLS = [
    pytest.param(activation, loss, setting, id=f"{activation}-{loss}-{setting}")
    for activation in names_in("activation")
    for loss in names_in("loss")
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

    from segexp.activations.head import logit_channels, make_head
    from segexp.activations.output import OUTPUT_ACTIVATIONS
    from segexp.losses import LOSSES

    num_classes, mode = config.dataset.num_classes, mode_of(config)
    generator = torch.Generator().manual_seed(0)
    network = torch.nn.Conv2d(1, logit_channels(num_classes, mode), 3, padding=1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    images = torch.randn(2, 1, 6, 6, generator=generator)
    target = torch.randint(num_classes, (2, 6, 6), generator=generator)
    head = make_head(OUTPUT_ACTIVATIONS[config.activation.name], mode, params(config.activation))
    loss_of = functools.partial(LOSSES[config.loss.name].function, **params(config.loss))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02)
    before = [p.detach().clone() for p in network.parameters()]
    value = loss_of(head(network(images)), target)
    value.backward()
    assert value.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    optimizer.step()
    assert all((p != old).any() for p, old in zip(network.parameters(), before, strict=True))
    assert loss_of(head(network(images)), target) < value


def test_table_names_every_activation() -> None:
    assert list(REFUSED) == names_in("activation")
    assert all(set(row) == set(SETTINGS) for row in REFUSED.values())
    assert names_in("loss") == EVERY_LOSS.split()


@pytest.mark.parametrize(("activation", "loss", "setting"), CELLS)
def test_trains_or_is_refused(activation: str, loss: str, setting: str) -> None:
    if loss not in REFUSED[activation][setting].split():
        train_one_step(paired(activation, loss, setting))
        return
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
        "activation=identity and loss=dice do not fit: dice needs probabilities, identity gives plain values; "
        "identity takes loss=mse, "
        "dice takes activation=sigmoid|arctan|normal_cdf|inverse_square_root|softsign|tanh"
    )


@pytest.mark.parametrize("setting", SETTINGS)
def test_listed_partners_are_right_and_complete(setting: str) -> None:
    """What a refusal offers is accepted, and of the canonical names it leaves none out."""
    activations = [n for n in names_in("activation") if alias_target("activation", n)[0] == n]
    losses = [n for n in names_in("loss") if alias_target("loss", n)[0] == n]
    refusals = 0
    for activation in activations:
        for loss in losses:
            try:
                paired(activation, loss, setting)
            except UsageError as error:
                refusals += 1
                (offered_losses,) = re.findall(rf"{activation} takes loss=(\S+),", str(error))
                (offered_activations,) = re.findall(rf"{loss} takes activation=(\S+)$", str(error))
                assert offered_losses.split("|") == [n for n in losses if not is_refused(activation, n, setting)]
                assert offered_activations.split("|") == [n for n in activations if not is_refused(n, loss, setting)]
    assert refusals == 4


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
    nearest = {"activation": "sigmoid", "loss": "jaccard"}[group]
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
    with pytest.raises(UsageError, match="identity takes loss=mse"):
        composed(("activation=linear", "loss=bce"))
    with pytest.raises(UsageError, match="loss=bce is loss=ce for binary or independent heads only"):
        composed(("loss=bce", "dataset.num_classes=3"))


def test_refusing_does_not_import_torch() -> None:
    code = """
import dataclasses, sys
from segexp.config import choice_config, names_in, resolve
from segexp.errors import UsageError
from segexp.launch.compose import compose, hydra_session
refused = 0
with hydra_session():
    for overrides in SETTINGS.values():
        base = compose(list(overrides))
        for activation in names_in("activation"):
            for loss in names_in("loss"):
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
