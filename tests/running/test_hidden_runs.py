"""Runs with another hidden activation: what they record, and that continuing, scoring and loading know of the swap."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from messages import mentions
from tiny import TINY, interrupted_run, tables, tiny_config, tiny_run

import segexp
from segexp.cli import main
from segexp.errors import UsageError
from segexp.records import flatten, read_table
from segexp.running import prepare

Captured = pytest.CaptureFixture[str]

SHARING = "backbone.name=resnet18"
"""An encoder that calls one module at several places, and keeps stages that a shallow network never calls."""

PRELU = (SHARING, "hidden_activation=prelu", "hidden_activation.init=0.1")


def record_of(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "run.json").read_text())


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def prelu(outputs: Path) -> Path:
    outcome = tiny_run(outputs, *PRELU)
    assert outcome.status == "done"
    return outcome.run_dir


@pytest.fixture(scope="module")
def native(outputs: Path) -> Path:
    return tiny_run(outputs, SHARING).run_dir


def test_the_record_says_what_was_replaced(prelu: Path) -> None:
    record = record_of(prelu)
    report = record["swap_report"]
    assert (report["activation"], report["scope"], report["escaped"]) == ("prelu", "both", {})
    assert report["replaced"] == 9 + 6  # stem and two stages of two blocks of two; three decoder blocks of two
    assert report["shared_split"] == 4
    assert record["init"]["gain"] == "auto"
    assert record["init"]["layers_without_normalisation"] == 0
    assert record["config"]["hidden_activation.init"] == 0.1
    assert list(record["diagnostics"]) == [
        "dead_output", "dead_gradient", "saturated", "gradient_ratio", "gradient_weakest",
    ]  # fmt: skip
    assert "prelu" in prelu.name
    summary = read_table(prelu / "summary.csv", "summary").iloc[0]
    assert summary["hidden_activation"] == "prelu"
    assert summary["n_params"] == record["n_params"]


def test_a_native_run_differs_by_the_parameters_alone(prelu: Path, native: Path) -> None:
    own, swapped = record_of(native), record_of(prelu)
    assert own["swap_report"] == {
        "activation": "native", "scope": "both", "replaced": 0, "functions": 0, "modules": 0, "shared_split": 0,
        "native": 15, "gates_kept": 0, "unreached": 0, "escaped": {},
    }  # fmt: skip
    unreached = swapped["swap_report"]["unreached"]  # stages below encoder_depth are built and never called
    assert swapped["n_params"] == own["n_params"] + 15 + unreached
    assert (swapped["init_sha"], swapped["order_sha"]) == (own["init_sha"], own["order_sha"])
    assert swapped["run_id"] != own["run_id"]


@pytest.mark.slow
def test_replaced_by_its_own_activation_a_network_trains_alike(native: Path, outputs: Path) -> None:
    """relu in the place of ReLU: the same scores, byte for byte, and the same looks inside."""
    relu, own = tables(tiny_run(outputs, SHARING, "hidden_activation=relu").run_dir), tables(native)
    for name in ("images.csv", "epochs.csv", "objects.csv", "bins.csv", "thresholds.csv"):
        assert own[name] == relu[name], name
    looks = [table["diagnostics.csv"].split(b"\n") for table in (own, relu)]
    assert [line.split(b",")[1:] for line in looks[0]] == [line.split(b",")[1:] for line in looks[1]]


@pytest.mark.slow
def test_a_continued_run_is_bit_equal(prelu: Path, tmp_path: Path) -> None:
    """Learned parameters, their group in the optimizer, and the looks come back from the checkpoint."""
    interrupted_run(tmp_path, 2, *PRELU)
    again = tiny_run(tmp_path, *PRELU)
    assert again.status == "done"
    assert tables(again.run_dir) == tables(prelu)


def test_evaluating_and_loading_give_the_network_with_what_it_learned(prelu: Path, capsys: Captured) -> None:
    assert main(["evaluate", str(prelu), "--split", "test"]) == 0
    capsys.readouterr()
    (folder,) = (prelu / "evaluations").iterdir()
    again, images = (read_table(path / "images.csv", "images") for path in (folder, prelu))
    assert list(again["dice"]) == list(images[images["split"] == "test"]["dice"])
    model = segexp.load(prelu)
    learned = [float(p.detach()) for name, p in model.named_parameters() if p.numel() == 1 and "decoder" in name]
    assert len(learned) == 6
    assert all(value != pytest.approx(0.1, abs=1e-7) for value in learned)


@pytest.mark.slow
def test_slopes_of_channels_are_learned_and_loaded(tmp_path: Path) -> None:
    """A slope for each channel of each call site comes back, and the record has their mean and spread."""
    run = tiny_run(tmp_path, SHARING, "hidden_activation=prelu_channel", "trainer.epochs=1").run_dir
    saved = torch.load(run / "checkpoints" / "best.pt", weights_only=True)["network"]
    loaded = segexp.load(run).state_dict()
    assert all(torch.equal(value, loaded[f"network.{key}"]) for key, value in saved.items())
    assert sum(len(value) > 8 and value.std() > 0 for key, value in saved.items() if "relu" in key) == 9
    learned = read_table(run / "diagnostics.csv", "diagnostics")["learned"]
    assert learned.str.match(r"weight: mean=\S+ sd=\S+ n=\d+$|weight=\S+( \S+){3,9}$").all()


def test_a_dry_run_tells_what_would_be_replaced(tmp_path: Path, capsys: Captured) -> None:
    words = [*TINY, SHARING, f"outputs={tmp_path / 'out'}", "hidden_activation=mish", "--dry-run"]
    assert main(["train", *words]) == 0
    told = capsys.readouterr().out
    assert all(text in told for text in ("15 call sites", "mish (both)", "4 shared", "0 escaped", "auto = 1.487"))
    assert not (tmp_path / "out").exists()


def test_what_escapes_is_refused_at_once(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder whose activation nobody knows: one line that names it and the operators."""
    from segexp.models import trace

    monkeypatch.setattr(trace, "ACTIVATION_CLASSES", frozenset())
    monkeypatch.setattr("segexp.models.swap.ACTIVATION_CLASSES", frozenset())
    monkeypatch.setattr("segexp.models.swap.FUNCTIONS", frozenset())
    tiny = [word for word in TINY if not word.startswith("backbone.name")]
    words = [*tiny, SHARING, f"outputs={tmp_path / 'out'}", "hidden_activation=mish"]
    assert main(["train", *words]) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert mentions(told, "backbone.name=resnet18", "relu in ReLU", "encoder.relu")
    assert not (tmp_path / "out").exists()


def test_options_that_mean_nothing_are_the_same_run(tmp_path: Path) -> None:
    plain = prepare(tiny_config(tmp_path)).identity
    assert prepare(tiny_config(tmp_path, "hidden_activation.scope=decoder", "init.gain=relu")).identity == plain
    assert prepare(tiny_config(tmp_path, "init.bias=0.1")).identity != plain
    silu = prepare(tiny_config(tmp_path, "hidden_activation=silu")).identity
    assert prepare(tiny_config(tmp_path, "hidden_activation=swish")).identity == silu
    assert prepare(tiny_config(tmp_path, "hidden_activation=silu", "hidden_activation.scope=encoder")).identity != silu
    assert prepare(tiny_config(tmp_path, "hidden_activation=silu", "init.gain=relu")).identity != silu


def test_pretrained_weights_under_another_activation(tmp_path: Path) -> None:
    network = segexp.build_model([*TINY])
    torch.save(network.encoder.state_dict(), tmp_path / "w.pt")  # type: ignore[union-attr]
    weights = f"backbone.weights={tmp_path / 'w.pt'}"
    with pytest.raises(UsageError, match=r"hidden_activation=mish.*allow_mismatched_weights=true"):
        tiny_config(tmp_path, weights, "hidden_activation=mish")
    allowed = tiny_run(
        tmp_path, weights, "hidden_activation=mish", "backbone.allow_mismatched_weights=true", "trainer.epochs=1"
    )
    assert any("mismatched weights" in warning for warning in record_of(allowed.run_dir)["warnings"])
    # Of the decoder alone, and where there is nothing to allow, the flag says nothing.
    for fitting in (("hidden_activation=mish", "hidden_activation.scope=decoder"), ("hidden_activation=native",)):
        config = tiny_config(tmp_path, weights, *fitting, "backbone.allow_mismatched_weights=true")
        assert flatten(config)["backbone.allow_mismatched_weights"] is False


def test_from_python() -> None:
    network = segexp.build_model([*TINY, "hidden_activation=arctan"])
    report = segexp.audit(network)
    assert (report.activation, report.functions, report.escaped) == ("arctan", 0, {})
    assert report.replaced == 7 + 6  # the encoder's; three decoder blocks of two
    network.decoder.blocks[0].conv1[2] = torch.nn.ReLU()  # type: ignore[index, union-attr]
    assert segexp.audit(network).escaped == {"relu in ReLU (decoder.blocks.0.conv1.2)": 1}
    foreign = torch.nn.Sequential(torch.nn.Conv2d(5, 4, 3), torch.nn.ReLU(), torch.nn.Tanh())
    assert (segexp.audit(foreign).activation, segexp.audit(foreign).native) == ("native", 2)
    with pytest.raises(UsageError, match=r"2 px\b.*\b5 channels"):
        segexp.audit(foreign, image_size=2)


@pytest.mark.slow
def test_gradients_too_small_for_half_precision_kill_no_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look at validation works in float32 where training has a scaler that it has not."""
    from segexp.evaluation.predict import make_forward as real

    precisions = []

    def watched(network: Any, device: Any, precision: str) -> Any:
        precisions.append(precision)
        return real(network, device, precision)

    for module in ("running.build", "running.finalize", "training.loop"):
        monkeypatch.setattr(f"segexp.{module}.make_forward", watched)
    run = tiny_run(tmp_path, "hidden_activation=leaky_relu", "trainer.precision=fp16", "trainer.epochs=1", "loss=dice")
    assert run.status == "done"
    assert (precisions.count("fp32"), set(precisions)) == (1, {"fp16", "fp32"})  # the look, and all else
    assert run.diagnostics["dead_gradient"] == 0
    assert not any("dead" in warning for warning in record_of(run.run_dir)["warnings"])


def test_an_activation_that_overflows_fp16_is_refused_before_training(tmp_path: Path) -> None:
    for name in ("cloglog", "loglog"):
        with pytest.raises(UsageError, match=rf"precision=fp16 .*activation={name}.*trainer\.precision=bf16 or fp32"):
            tiny_run(tmp_path, f"activation={name}", "trainer.precision=fp16", "loss=ce")
    assert not list(tmp_path.rglob("run.json"))


@pytest.mark.slow
def test_a_run_that_was_begun_with_what_overflows_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or skipped when it is done."""
    given = ("activation=cloglog", "trainer.precision=fp16", "trainer.epochs=1", "loss=dice")
    with monkeypatch.context() as patched:
        patched.setattr("segexp.running._check_precision", lambda config: None)
        begun = tiny_run(tmp_path, *given)
    assert tiny_run(tmp_path, *given).run_dir == begun.run_dir


@pytest.mark.parametrize("name", ["squared_relu", "relu"])
def test_a_hidden_activation_that_overflows_fp16_is_warned_about(tmp_path: Path, name: str) -> None:
    for precision in ("fp16", "fp32"):
        given = (f"hidden_activation={name}", f"trainer.precision={precision}", "loss=dice")
        warned = [
            w for w in prepare(tiny_config(tmp_path, *given)).warnings if mentions(w, f"hidden_activation={name}")
        ]
        assert len(warned) == (precision == "fp16" and name == "squared_relu")
        assert all(mentions(w, "trainer.precision=bf16") for w in warned)


@pytest.mark.slow
def test_a_run_is_rebuilt_at_its_input_size(tmp_path: Path, prelu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders of one size take no other."""
    from segexp.models.build import build_with_hidden as real

    sizes = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        sizes.append(kwargs["size"])
        return real(*args, **kwargs)

    monkeypatch.setattr("segexp.running.build.build_with_hidden", watched)
    segexp.load(prelu)
    assert sizes == [record_of(prelu)["input_size"]] == [32]
