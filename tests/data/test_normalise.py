"""``dataset.normalise``: rules for stored values, and runs on images that are no 8 or 16-bit integers."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from messages import mentions
from tiny import tiny_config

import segexp
from segexp.config.compose import compose, hydra_session, readable
from segexp.data.image_set import ImageSet, Pair
from segexp.data.normalise import rule_of, ruled, shown
from segexp.errors import UsageError
from segexp.running import Outcome, prepare
from segexp.running.execute import execute

IMAGE_HWC = np.random.default_rng(0).normal([-200, 900], [50, 400], (40, 30, 2))


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.uint16])
def test_rules_scale_each_channel_as_their_definitions_say(dtype: type) -> None:
    image: np.ndarray = np.maximum(IMAGE_HWC, 0 if dtype == np.uint16 else -1e4).astype(dtype)
    assert ruled(image, rule_of("train")) is image
    whitened = ruled(image, rule_of("image"))
    assert whitened.dtype == np.float32
    np.testing.assert_allclose(whitened[..., 1].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(whitened[..., 1].std(), 1, atol=1e-6)
    low, high = np.percentile(image[..., 1], [1, 99])
    np.testing.assert_allclose(
        ruled(image, rule_of("percentile"))[..., 1], np.clip((image[..., 1] - low) / (high - low), 0, 1), atol=1e-6
    )
    window = ruled(image, rule_of("ct(-100, 300)"))
    np.testing.assert_allclose(window, np.clip((image.astype(float) + 100) / 400, 0, 1), atol=1e-6)


def test_a_constant_channel_is_zero() -> None:
    image = np.full((4, 4, 1), 7, np.int16)
    for rule in ("image", "percentile"):
        assert not ruled(image, rule_of(rule)).any()


NO_RULE = ("ct", "ct()", "ct(1)", "ct(3,1)", "ct(1,1)", "ct(a,b)", "ct(0,inf)", "z", "", "ct(1,2,3)")


@pytest.mark.parametrize("text", NO_RULE)
def test_other_texts_are_no_rule(text: str) -> None:
    with pytest.raises(ValueError, match="none of train, image, percentile"):
        rule_of(text)


def test_the_configuration_checks_the_rule_and_reads_a_window_unquoted(tmp_path: Path) -> None:
    with hydra_session():
        assert compose(readable(["dataset.normalise=ct(-100,300)"])).dataset.normalise == "ct(-100,300)"
    with pytest.raises(UsageError) as error:
        tiny_config(tmp_path, "dataset.normalise=minmax")
    mentions(error.value, "dataset.normalise=minmax", "train, image, percentile, ct")


def test_pictures_show_any_values_between_0_and_1() -> None:
    assert shown(np.array([[[0], [255]]], np.uint8)).tolist() == [[[0], [1]]]
    for dtype in (np.int16, np.float32):
        picture = shown(IMAGE_HWC.astype(dtype))
        assert picture.min() == 0
        assert picture.max() == 1


def run_on(folder: Path, change: type, factor: float, shift: float, *overrides: str) -> Outcome:
    """A tiny run on the embedded images, their values stored in another way."""
    spec = prepare(tiny_config(folder, "trainer.epochs=1", *overrides))

    def read(index: int) -> Pair:
        pair = spec.image_set.read(index)
        return dataclasses.replace(pair, image_HWC=(pair.image_HWC.astype(float) * factor + shift).astype(change))

    image_set: ImageSet = dataclasses.replace(spec.image_set, read=read, content="")
    facts = dataclasses.replace(spec.facts, dtypes_N=(np.dtype(change).name,) * len(spec.facts.dtypes_N))
    return execute(dataclasses.replace(spec, image_set=image_set, facts=facts))


@pytest.mark.parametrize("rule", [
    "train", *(pytest.param(rule, marks=pytest.mark.slow) for rule in ("image", "percentile", "ct(-1000,1000)")),
])  # fmt: skip
def test_a_run_on_signed_values_takes_them_as_they_are_stored(tmp_path: Path, rule: str) -> None:
    outcome = run_on(tmp_path, np.int16, 4, -300, f"dataset.normalise='{rule}'")
    assert outcome.status == "done"
    record = json.loads((outcome.run_dir / "run.json").read_text())
    assert record["normalisation"]["stored"] is True
    assert (record["normalisation"]["mean"] == [0.0]) == (rule == "image")
    network = segexp.load(outcome.run_dir)
    stored = torch.linspace(-300, 720, 32 * 32).reshape(1, 1, 32, 32).to(torch.int16)
    probabilities = network(stored)
    assert probabilities.isfinite().all()
    assert torch.equal(probabilities, network(stored.float()))
    with pytest.raises(TypeError, match="ndarray"):
        network(stored.numpy())
    if rule == "train":
        with pytest.raises(ValueError, match=r"uint8.*stored values"):
            network(stored.to(torch.uint8))


@pytest.mark.slow
def test_the_scale_of_floating_images_does_not_matter_under_train(tmp_path: Path) -> None:
    one = run_on(tmp_path / "a", np.float32, 1, 0).summary
    other = run_on(tmp_path / "b", np.float32, 1024, 0).summary
    assert one["nll"] == pytest.approx(other["nll"], rel=1e-4)


def test_one_name_for_each_channel(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        prepare(tiny_config(tmp_path, "dataset.channels=2", "dataset.channel_names=[T1]"))
    mentions(error.value, "dataset.channel_names", "1", "2")
    assert prepare(tiny_config(tmp_path, "dataset.channels=2", "dataset.channel_names=[T1,T2]"))


@pytest.mark.parametrize("channels", [5, pytest.param(32, marks=pytest.mark.slow)])
def test_every_channel_reaches_the_network_and_has_statistics_of_its_own(tmp_path: Path, channels: int) -> None:
    spec = prepare(tiny_config(tmp_path, "trainer.epochs=1"))
    scale_C, plain = np.arange(1, channels + 1), spec.image_set.read

    def read(index: int) -> Pair:
        pair = plain(index)
        return dataclasses.replace(pair, image_HWC=(pair.image_HWC * scale_C).astype(np.uint16))

    image_set = dataclasses.replace(spec.image_set, read=read, channels=channels, content="")
    spec = dataclasses.replace(spec, image_set=image_set)
    outcome = execute(spec)
    assert outcome.status == "done", outcome.reason
    mean_C = np.array(json.loads((outcome.run_dir / "run.json").read_text())["normalisation"]["mean"])
    np.testing.assert_allclose(mean_C / mean_C[0], scale_C, rtol=1e-5)
    assert segexp.load(outcome.run_dir)(torch.zeros(1, channels, 32, 32)).shape == (1, 1, 32, 32)
