"""Which combinations of activation, loss and head are valid: each pair takes a training step or is refused."""

import dataclasses
import functools
import re
from collections.abc import Sequence

import pytest

from segexp.config import Choice, Config, alias_target, choice_config, entry_of, mode_of, names_in, params
from segexp.config.canonical import resolve
from segexp.config.compose import compose, hydra_session
from segexp.errors import UsageError

SETTINGS: dict[str, tuple[str, ...]] = {
    "binary": ("dataset.num_classes=2",),
    "softmax": ("dataset.num_classes=3", "head.mode=softmax"),
    "independent": ("dataset.num_classes=3", "head.mode=independent"),
}

EVERY_LOSS = " ".join(name for name in names_in("loss") if name != "sum")
PROBABILITIES_ONLY = " ".join(name for name in EVERY_LOSS.split() if entry_of("loss", name).needs == "log_odds")

NONE = {"binary": "", "softmax": "bce", "independent": ""}
CURVED = {"binary": "", "softmax": "bce matching", "independent": ""}
UNMATCHED = {"binary": "matching", "softmax": "bce matching", "independent": "matching"}
CLIPPED = {mode: f"topk_ce {losses}" for mode, losses in CURVED.items()}
VALUES = {"binary": PROBABILITIES_ONLY, "softmax": PROBABILITIES_ONLY, "independent": PROBABILITIES_ONLY}

SPECIAL: dict[str, dict[str, str]] = {
    "sigmoid": NONE,
    "softmax": {"binary": EVERY_LOSS, "softmax": "bce", "independent": EVERY_LOSS},
    "tanh": NONE,
    **dict.fromkeys(("minmax_linear", "learned_tail"), UNMATCHED),
    "taylor_softmax": {"binary": EVERY_LOSS, "softmax": "bce matching", "independent": EVERY_LOSS},
    **dict.fromkeys(("hardtanh", "hardsigmoid"), CLIPPED),
    **dict.fromkeys(("identity", "linear", "none"), VALUES),
}
REFUSED = {name: SPECIAL.get(name, CURVED) for name in names_in("activation")}
"""Every combination that is refused: activation -> head -> losses. All other pairs train."""


@functools.cache
def composed(overrides: Sequence[str]) -> Config:
    with hydra_session():
        return compose(list(overrides))


section = functools.cache(choice_config)


def choice(group: str, name: str) -> Choice:
    return section(group, name)(name=name)


def paired(activation: str, loss: str, setting: str) -> Config:
    """The resolved configuration of a pair. Raises UsageError."""
    raw = dataclasses.replace(
        composed(SETTINGS[setting]), activation=choice("activation", activation), loss=choice("loss", loss)
    )
    return resolve(raw)


@functools.cache
def is_refused(activation: str, loss: str, setting: str) -> bool:
    try:
        paired(activation, loss, setting)
    except UsageError:
        return True
    return False


def train_one_step(config: Config) -> None:
    """As `segexp check-plugin` does; asserts that it learns."""
    from segexp.activations.output import OUTPUT_ACTIVATIONS
    from segexp.losses import LOSSES
    from segexp.running.head_check import check_pair

    activation, loss = OUTPUT_ACTIVATIONS[config.activation.name], LOSSES[config.loss.name]
    check_pair(activation, loss, mode_of(config), params(config.activation), params(config.loss))


def test_the_table_names_no_other_activation() -> None:
    assert SPECIAL.keys() <= set(names_in("activation"))
    assert {"ce", "dice", "dice_ce"} <= set(PROBABILITIES_ONLY.split()) <= set(EVERY_LOSS.split()) - {"mse", "l1"}


KINDS_OF_F = ("sigmoid", "hardsigmoid", "identity")
"""Trained by default; the rest are left to CI."""


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(("activation", "train"), [
    *((name, name in KINDS_OF_F) for name in names_in("activation")),
    *(pytest.param(name, True, marks=pytest.mark.slow) for name in names_in("activation") if name not in KINDS_OF_F),
])  # fmt: skip
def test_trains_or_is_refused(activation: str, train: bool, setting: str) -> None:
    """With every loss in turn."""
    for loss in EVERY_LOSS.split():
        if loss not in REFUSED[activation][setting].split():
            config = paired(activation, loss, setting)
            if (config.activation.name, config.loss.name) == (activation, loss):
                if train:
                    train_one_step(config)
            else:  # the same run under another name
                same = paired(config.activation.name, config.loss.name, setting)
                assert params(config.activation) == params(same.activation)
                assert params(config.loss) == params(same.loss)
            continue
        with pytest.raises(UsageError) as caught:
            paired(activation, loss, setting)
        line = str(caught.value)
        assert "\n" not in line
        assert line.startswith((f"activation={activation} ", f"loss={loss} "))


@pytest.mark.parametrize("setting", SETTINGS)
def test_listed_partners_are_right_and_complete(setting: str) -> None:
    """Every partner that an error offers is accepted, and it leaves out none of the canonical names."""
    activations = [n for n in names_in("activation") if alias_target("activation", n)[0] == n]
    activations = [n for n in activations if setting in entry_of("activation", n).modes]
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
    assert refusals == sum(len({*REFUSED[name][setting].split()} & {*losses}) for name in activations)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("activation", names_in("activation"))
def test_a_sum_is_refused_where_one_of_its_terms_is(activation: str, setting: str) -> None:
    """Every two neighbours of the registry, as one sum; the first that fits is trained."""
    trained, canonical = False, alias_target("activation", activation)[0]
    losses = [n for n in EVERY_LOSS.split() if alias_target("loss", n)[0] == n]
    for first, second in zip(losses, [*losses[1:], losses[0]], strict=True):
        together = section("loss", "sum")(name="sum", terms={first: 1, second: 0.5})  # type: ignore[call-arg]
        raw = dataclasses.replace(
            composed(SETTINGS[setting]), activation=choice("activation", activation), loss=together
        )
        if is_refused(activation, first, setting) or is_refused(activation, second, setting):
            with pytest.raises(UsageError, match=rf"^activation=({activation}|{canonical}) "):
                resolve(raw)
        else:
            config = resolve(raw)
            if not trained:
                train_one_step(config)
            trained = True
