"""The Python API: the same objects as the command line, documented by examples that run."""

import doctest
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny import TINY, counts_on_test, tiny_config, tiny_run, write_pairs

import segexp
import segexp.api
from segexp import cli
from segexp.activations.output import OUTPUT_ACTIVATIONS
from segexp.errors import UsageError
from segexp.losses import LOSSES
from segexp.models.build import init_sha
from segexp.records import read_run, read_table
from segexp.running import Outcome, prepare

PUBLIC = (
    "output_activation", "hidden_activation", "head", "loss", "build_model", "audit", "confusion_counts", "run", "load",
    "read_collected", "use_plugins",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in ("run", "load", "audit"))) for n in (*PUBLIC, "api")]
)
def test_every_public_function_and_the_module_have_examples_that_run(name: str) -> None:
    finder = doctest.DocTestFinder(recurse=False)
    (examples,) = finder.find(getattr(segexp, name), name, module=False, globs={})
    assert examples.examples, f"{name} has no example"
    assert doctest.DocTestRunner().run(examples).failed == 0


def test_everything_public_is_named() -> None:
    from segexp import notebook

    in_notebooks = {"compare", "load_study"}
    assert {*PUBLIC, *in_notebooks} == set(segexp.__all__)
    assert set(PUBLIC) <= {*vars(segexp.api), "read_collected"}
    assert in_notebooks <= vars(notebook).keys()
    assert set(PUBLIC) < set(dir(segexp))
    with pytest.raises(AttributeError, match="'nothing'"):
        segexp.nothing  # noqa: B018


X = torch.linspace(-4, 4, 17, dtype=torch.float64)


@pytest.mark.parametrize("name", [n for n, e in OUTPUT_ACTIVATIONS.items() if e.log_odds and "binary" in e.modes])
def test_an_activation_is_consistent_with_itself(name: str) -> None:
    activation = segexp.output_activation(name, slope="native" if name == "minmax_linear" else "0.7")
    p = activation(X)
    assert torch.equal(p, activation.log_odds(X).sigmoid())
    torch.testing.assert_close(activation.log_prob(X).exp(), p)
    torch.testing.assert_close(activation.log_not_prob(X).exp(), 1 - p)
    if not activation.entry.clips:
        torch.testing.assert_close(activation.inverse(p), X)


def test_an_activation_takes_numbers_lists_and_halves() -> None:
    arctan = segexp.output_activation("arctan")
    assert arctan(1.0).item() == pytest.approx(0.75)
    assert arctan([0.0, 1.0]).dtype == torch.float64
    assert arctan(torch.tensor([1.0], dtype=torch.float16)).dtype == torch.float32
    assert segexp.output_activation("probit").name == "normal_cdf"
    assert segexp.output_activation("hardtanh", eps=0.1)(5.0).item() == pytest.approx(0.9)
    assert segexp.output_activation("identity", slope=2)([1.5]).item() == 3.0


@pytest.mark.parametrize(("call", "told"), [
    (lambda: segexp.output_activation("arctn"), "unknown activation 'arctn'; did you mean arctan"),
    (lambda: segexp.output_activation("arctan", slop=1), "did you mean slope"),
    (lambda: segexp.hidden_activation("relu", negative_slope=0.1), "relu has no such option"),
    (lambda: segexp.output_activation("hardtanh", eps="0.1"), "activation.eps=0.1 is not a valid value"),
    (lambda: segexp.output_activation("minmax_linear", slope="matched"), "minmax_linear has no slope"),
    (lambda: segexp.head("softmax", mode="independent"), "use head('sigmoid', mode='softmax')"),
    (lambda: segexp.head("arctan")(torch.zeros(1, 2, 1, 1)), "use one channel"),
    (lambda: segexp.head("arctan")(torch.zeros(3, 1, 1)), "must be a floating tensor (N, K, H, W)"),
    (lambda: segexp.loss("sum", terms={"ce": 1, "bce": 1}), "ce is given twice"),
    (lambda: segexp.run(None), "a list of texts or a mapping"),  # type: ignore[arg-type]
    (lambda: segexp.run({"outputs": object()}), "outputs: a object is not a plain value"),
    (lambda: segexp.output_activation("hardtanh", eps=0.7), "activation.eps=0.7 is out of range"),
    (lambda: segexp.output_activation("identity").log_odds(1.0), "has no probabilities"),
    (lambda: segexp.output_activation("taylor_softmax")(0.0), "use segexp.head('taylor_softmax', mode='softmax')"),
    (lambda: segexp.output_activation("taylor_softmax").inverse(0.5), "mode='softmax'"),
    (lambda: segexp.head("taylor_softmax")(torch.zeros(1, 1, 1, 1)), "head.mode=softmax"),
    (lambda: segexp.head("arctan", mode="many"), "unknown head mode 'many'"),
    (lambda: segexp.head("arctan", mode="binary")(torch.zeros(1, 2, 1, 1)), "for one channel"),
    (lambda: segexp.loss("dic"), "unknown loss 'dic'; did you mean dice"),
    (lambda: segexp.loss("sum", terms={"dice": 1}), "two losses or more"),
    (lambda: segexp.run({"activation": "arctn"}), "did you mean arctan"),
    (lambda: segexp.build_model(["backbone.name=resnet19"]), "resnet18"),
    (lambda: segexp.load("nowhere"), "nowhere"),
    (lambda: segexp.hidden_activation("native"), "native"),
    (lambda: segexp.hidden_activation("softmax"), "normalises over channels"),
    (lambda: segexp.hidden_activation("leaky_relu", negative_slope=-0.1), "at least 0"),
])  # fmt: skip
def test_mistakes_are_told_in_one_line(call, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pair_that_means_nothing_is_refused_when_called() -> None:
    target = torch.zeros(1, 2, 2, dtype=torch.long)
    of_values, of_classes = (segexp.head(n)(torch.zeros(1, k, 2, 2)) for n, k in (("identity", 1), ("arctan", 3)))
    with pytest.raises(UsageError, match="dice needs probabilities"):
        segexp.loss("dice")(of_values, target)
    for loss in ("matching", "bce"):
        with pytest.raises(UsageError, match=loss):
            segexp.loss(loss)(of_classes, target)
    with pytest.raises(UsageError, match="dice needs probabilities"):
        segexp.loss("sum", terms={"mse": 1, "dice": 1})(of_values, target)


@pytest.mark.parametrize("mode", ["softmax", "independent"])
def test_head_and_loss_are_those_of_the_command_line(mode: str) -> None:
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    target = torch.arange(32).reshape(2, 4, 4) % 3
    prediction = segexp.head(segexp.output_activation("student_t3", slope="matched"), mode=mode)(logits)
    for name in ("ce", "dice", "focal"):
        assert torch.equal(segexp.loss(name)(prediction, target), LOSSES[name].function(prediction, target))
    both = segexp.loss("sum", terms={"dice": {"weight": 2, "smooth": 1}, "nll": 0.5})(prediction, target)
    expected = 2 * LOSSES["dice"].function(prediction, target, smooth=1) + 0.5 * LOSSES["ce"].function(
        prediction, target
    )
    torch.testing.assert_close(both, expected)


def test_options_may_be_arrays_numbers_of_numpy_and_any_index() -> None:
    prediction = segexp.head("sigmoid")(torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
    target = torch.arange(16).reshape(1, 4, 4) % 3
    wanted = segexp.loss("ce", class_weights=[1, 2, 3], label_smoothing=0.5)(prediction, target)
    for weights in (np.array([1, 2, 3]), torch.tensor([1.0, 2.0, 3.0]), (1, 2, 3)):
        found = segexp.loss("ce", class_weights=weights, label_smoothing=np.float64(0.5))(prediction, target)
        assert torch.equal(found, wanted)
    assert segexp.output_activation("arctan", slope=np.float32(2)).slope == 2
    # ignore_index is any number.
    hidden, negative = target.clone(), target.clone()
    hidden[0, 1], negative[0, 1] = 255, -1
    wanted = segexp.loss("ce")(prediction, hidden)
    assert torch.equal(segexp.loss("ce", ignore_index=-1)(prediction, negative), wanted)
    assert wanted != segexp.loss("ce")(prediction, target)


def test_a_target_that_is_no_class_is_refused() -> None:
    prediction = segexp.head("sigmoid")(torch.zeros(1, 1, 1, 3))
    masks = torch.tensor([[[0, 255, 255]]])
    of = segexp.loss("ce", ignore_index=None)
    byte = torch.tensor([[[0, 1, 156]]], dtype=torch.uint8)  # 156 is -100 in a byte, and not what is ignored
    for ignored, mask, told in (
        (None, masks, "255.*0 to 1"), (-1, masks.to(torch.uint8), "255.*-1"), (None, masks.float(), "0, 1"),
        (-100, byte, "156"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=told):
            segexp.loss("ce", ignore_index=ignored)(prediction, mask)
    assert of(prediction, (masks > 127).long()).item() == pytest.approx(math.log(2))


def test_inverse_of_what_is_no_probability() -> None:
    for name in ("normal_cdf", "student_t3", "arctan"):
        activation = segexp.output_activation(name)
        for wrong in (-0.1, 1.5):
            with pytest.raises(ValueError, match=r"within \[0, 1\]"):
                activation.inverse(wrong)
        assert activation.inverse([0.0, 1.0]).tolist() == [-math.inf, math.inf]
        assert math.isnan(activation.inverse(math.nan).item())


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return tiny_run(tmp_path_factory.mktemp("api"), "activation=arctan", "loss=dice")


def test_run_is_that_of_the_command_line(done: Outcome, tmp_path: Path) -> None:
    summary = segexp.run([*TINY, "activation=arctan", "loss=dice", f"outputs={tmp_path}"])
    table = read_table(Path(summary["run_dir"]) / "summary.csv", "summary").iloc[0].to_dict()
    assert summary.keys() - table.keys() == {"run_dir"}
    for name, value in table.items():
        missing = value is pd.NA or (isinstance(value, float) and math.isnan(value))
        assert summary[str(name)] == value or (missing and summary[str(name)] in (None, "")) or math.isnan(value), name
    assert (done.run_dir / "images.csv").read_bytes() == (Path(summary["run_dir"]) / "images.csv").read_bytes()
    # A second call reads what is there, NaN included.
    again = segexp.run({"outputs": str(tmp_path), "activation": "arctan", "loss": "dice"} | dict(
        word.split("=") for word in TINY if not word.startswith("model.d")
    ) | {"model.decoder_channels": [16, 8, 8]})  # fmt: skip
    for name in summary:
        assert again[name] == summary[name] or (math.isnan(again[name]) and math.isnan(summary[name])), name


def test_threads_of_a_run_are_not_those_of_the_next(tmp_path: Path) -> None:
    words = [*TINY, "activation.prior_bias=auto", f"outputs={tmp_path}"]
    torch.set_num_threads(2)
    try:
        run_dir = segexp.run(words)["run_dir"]
        taken = [torch.get_num_threads()]
        segexp.build_model(words)
        taken.append(torch.get_num_threads())
        assert cli.main(["evaluate", run_dir, "trainer.threads=1"]) == 0
        assert [*taken, torch.get_num_threads()] == [2, 2, 2]
    finally:
        torch.set_num_threads(1)
    assert read_run(Path(run_dir))["device"]["threads"] == 1


def test_a_failed_run_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no kernel")

    monkeypatch.setattr("segexp.running.execute.train", broken)
    with pytest.raises(RuntimeError, match="failed: RuntimeError: no kernel"):
        segexp.run([*TINY, f"outputs={tmp_path}"])


def test_build_model_starts_as_the_run_did(done: Outcome) -> None:
    record = json.loads((done.run_dir / "run.json").read_text())
    assert init_sha(segexp.build_model([*TINY, "activation=arctan"])) == record["init_sha"]


def test_build_model_sets_the_prior() -> None:
    for prior, wanted in (("0.01", -31.820515953773958), ("none", None)):
        network = segexp.build_model(
            [*TINY, "activation=arctan", f"activation.prior_bias={prior}", "activation.prior_bias_cap=100"]
        )
        bias = network.segmentation_head[0].bias.item()  # type: ignore[index, union-attr]
        assert (bias == pytest.approx(wanted)) == (prior != "none")
    auto = segexp.build_model([*TINY, "activation.prior_bias=auto"])
    share = torch.sigmoid(auto.segmentation_head[0].bias).item()  # type: ignore[index, union-attr]
    prepared = prepare(tiny_config(Path("unused")))
    pixels = prepared.facts.class_pixels_NC[prepared.split["train"]].sum(0)
    assert share == pytest.approx(pixels[1] / pixels.sum(), rel=1e-5)


def test_loaded_network_predicts_what_the_run_scored(done: Outcome) -> None:
    """Probabilities of the raw test images give the per-image counts of images.csv."""
    model = segexp.load(done.run_dir)
    assert not model.training
    prepared = prepare(tiny_config(done.run_dir.parent.parent, "activation=arctan", "loss=dice"))
    counts, dice = counts_on_test(model, prepared)
    table = read_table(done.run_dir / "images.csv", "images")
    rows = table[table["split"] == "test"]
    assert np.array_equal(counts, rows[["tp", "fp", "fn"]].to_numpy(dtype=int))
    assert dice == pytest.approx(done.summary["dice"])


def test_loaded_network_takes_any_size_and_depth(done: Outcome) -> None:
    model = segexp.load(str(done.run_dir))
    image = torch.randint(0, 256, (2, 1, 33, 47), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    p = model(image)
    assert p.shape == (2, 1, 33, 47)
    assert torch.equal(model(image.float() / 255), p)
    torch.testing.assert_close(model((image.long() * 257).to(torch.uint16)), p)
    for wrong, told in ((torch.zeros(1, 3, 32, 32), "N, 1, H, W"), (image.long(), "uint16"), (image.float(), "0, 1")):
        with pytest.raises(ValueError, match=told):
            model(wrong)
    assert not model.train().network.training  # type: ignore[union-attr]


@pytest.mark.slow
def test_loaded_network_pads_as_the_run_did(tmp_path: Path) -> None:
    """Images of odd sizes, padded: the probabilities are those of predictions/."""
    draw, masks = np.random.default_rng(0), np.zeros((12, 37, 45), dtype=np.uint8)
    for n, mask in enumerate(masks):
        mask[8:20, n : n + 12] = 255
    images = [mask * 0.5 + draw.integers(0, 60, mask.shape) + np.arange(45) for mask in masks]
    write_pairs(tmp_path / "data", [(f"{n:02}.png", *pair) for n, pair in enumerate(zip(images, masks, strict=True))])
    summary = segexp.run({
        "dataset": "folder", "dataset.root": tmp_path / "data", "dataset.fit": "pad", "dataset.image_size": 64,
        "trainer.epochs": np.int64(1), "trainer.batch_size": 4, "trainer.device": "cpu", "outputs": tmp_path / "o",
        "backbone.name": "tu-test_resnet", "model.encoder_depth": 3, "model.decoder_channels": [16, 8, 8],
    })  # fmt: skip
    model = segexp.load(summary["run_dir"])
    maps = sorted((Path(summary["run_dir"]) / "predictions").iterdir())
    assert maps
    for path in maps:
        image = torch.from_numpy(np.array(Image.open(tmp_path / "data" / "images" / path.name)))[None, None]
        with torch.inference_mode():
            p = model(image)[0, 0].numpy()
        assert np.abs(np.asarray(Image.open(path)) / 255 - p).max() <= 0.5 / 255 + 1e-6


def test_only_a_finished_run_is_loaded(done: Outcome, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(done.run_dir, tmp_path / "copy"))
    record = read_run(run_dir)
    (run_dir / "run.json").write_text(json.dumps(record | {"status": "interrupted"}))
    with pytest.raises(UsageError, match=r"interrupted: .*done"):
        segexp.load(run_dir)
    (run_dir / "run.json").write_text(json.dumps(record))
    for checkpoint in (run_dir / "checkpoints").iterdir():
        checkpoint.unlink()
    with pytest.raises(UsageError, match=r"best\.pt is missing.*resume=restart"):
        segexp.load(run_dir)
