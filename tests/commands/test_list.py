"""What `segexp list` prints: every entry, with all its facts."""

import json

import pytest

from segexp import cli
from segexp.activations.hidden import HIDDEN_ACTIVATIONS, Cost, measured_costs
from segexp.activations.output import ALL_MODES
from segexp.commands.list import BRIEF, KINDS, listed
from segexp.config import CODE_GROUPS, preset_names
from segexp.data import adapters
from segexp.losses import LOSSES, fits
from segexp.models.architectures import ARCHITECTURES, encoder_names

KIND_OF = {"activation": "activations", "loss": "losses", "hidden_activation": "hidden_activations"}
KIND_OF |= {"optimizer": "optimizers", "scheduler": "schedulers", "model": "models"}
LIGHT = [kind for kind in KINDS if kind != "backbones"]


def out_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["list", *words]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


@pytest.mark.parametrize("kind", LIGHT)
def test_the_three_forms_hold_every_entry(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = listed(kind)
    names = [row["name"] for row in rows]
    assert names
    assert all(row.keys() == rows[0].keys() for row in rows)
    plain = out_of(capsys, kind).splitlines()
    assert [line.split()[0] for line in plain[2:] if not line.startswith(" ")] == names
    assert max(map(len, plain)) <= 140
    assert plain[0].split() == list(BRIEF.get(kind, rows[0]))
    assert json.loads(out_of(capsys, kind, "--json")) == rows
    markdown = out_of(capsys, kind, "--markdown").splitlines()
    assert [line.split(" ")[1] for line in markdown[2:]] == names
    assert all(line.replace("\\|", "").count("|") == len(rows[0]) + 1 for line in markdown)


@pytest.mark.parametrize("group", CODE_GROUPS)
def test_every_entry_of_a_registry_is_listed_in_order_with_its_names_and_options(group: str) -> None:
    rows = listed(KIND_OF[group])
    assert [row["name"] for row in rows] == list(CODE_GROUPS[group])
    fact = "summary" if group == "model" else "formula"
    for row in rows:
        entry = CODE_GROUPS[group][row["name"]]
        assert row[fact] == getattr(entry, fact)
        assert row.get("aliases", []) == list(getattr(entry, "aliases", {}))
        assert [text.split("=")[0] for text in row["options"]] == [o.name for o in entry.options]


def test_activations_and_losses_name_each_other() -> None:
    losses = {row["name"]: row["losses"] for row in listed("activations")}
    activations = {row["name"]: row["activations"] for row in listed("losses")}
    for activation in CODE_GROUPS["activation"].values():
        for loss in LOSSES.values():
            together = any(fits(activation, loss, mode) for mode in ALL_MODES)
            assert (loss.name in losses[activation.name]) == together
            assert (activation.name in activations[loss.name]) == together


@pytest.mark.parametrize(("kind", "group"), [("datasets", "dataset"), ("augmentations", "augment")])
def test_presets_are_listed_with_their_values(kind: str, group: str) -> None:
    rows = listed(kind)
    assert [row["name"] for row in rows] == preset_names(group)
    assert all(row["options"] for row in rows)
    assert not any(option.startswith(("name=", "defaults=", "adapter=")) for row in rows for option in row["options"])
    what = {row["name"]: row["what"] for row in listed("datasets")}
    assert all(what.values())
    assert {name: what[name] for name in adapters()} == {name: a.summary for name, a in adapters().items()}


def test_public_data_sets_are_listed_with_classes_and_licence(capsys: pytest.CaptureFixture[str]) -> None:
    pets = next(row for row in json.loads(out_of(capsys, "datasets", "--json")) if row["name"] == "oxford_pets")
    assert (pets["adapter"], pets["classes"], pets["class_names"]) == ("pattern", "2", ["background", "pet"])
    assert (pets["licence"], pets["url"]) == ("CC BY-SA 4.0", "https://www.robots.ox.ac.uk/~vgg/data/pets/")
    assert "10.1109/CVPR.2012.6248092" in pets["citation"]
    shown = out_of(capsys, "datasets")
    assert all(word in shown for word in ("oxford_pets", "cats and dogs", "CC BY-SA 4.0"))
    assert "mask_values" not in shown


def test_backbones_are_the_encoders_of_the_network_library(capsys: pytest.CaptureFixture[str]) -> None:
    names = [row["name"] for row in json.loads(out_of(capsys, "backbones", "--json"))]
    assert {"resnet18", "resnet34", "efficientnet-b0", "mobilenet_v2"} <= set(names)
    assert set(preset_names("backbone")) <= set(names)
    assert "backbone.name=resnet18" in out_of(capsys, "backbones")
    assert "| resnet18 |" in out_of(capsys, "backbones", "--markdown")
    # They say which models they were seen to train with.
    models = {row["name"]: row["models"] for row in listed("backbones")}
    assert set(ARCHITECTURES) - set(models["resnet18"]) == {"dpt"}
    assert set(ARCHITECTURES) - set(models["mit_b0"]) == {"dpt", "unetplusplus", "linknet"}
    assert models["tu-vit_tiny_patch16_224"] == ["dpt"]
    assert [name for name in encoder_names() if name not in models] == []


def test_models_say_what_they_take() -> None:
    rows = {row["name"]: row for row in listed("models")}
    assert rows["unet"]["divisor"] == "32 (2^encoder_depth)"
    assert rows["pan"]["min_size"] == "128 (8 * encoder_output_stride)"
    assert rows["dpt"]["divisor"] == "32"
    assert "tu-vit_" in rows["dpt"]["encoders"]


def test_hidden_activations_are_sorted_and_chosen_by_family(capsys: pytest.CaptureFixture[str]) -> None:
    every = listed("hidden_activations")
    for by, column in (("cost", "both_cost"), ("year", "year")):
        rows = json.loads(out_of(capsys, "hidden_activations", "--sort", by, "--json"))
        known = [row[column] for row in rows if row[column] is not None]
        assert known == sorted(known)
        assert all(row[column] is None for row in rows[len(known) :])
        assert sorted(row["name"] for row in rows) == sorted(row["name"] for row in every)
    rows = json.loads(out_of(capsys, "hidden_activations", "--family", "sigmoidal", "--sort", "year", "--json"))
    assert [row["name"] for row in rows[:2]] == ["sigmoid", "erf"]
    assert {row["name"] for row in rows} == {row["name"] for row in every if row["family"] == "sigmoidal"}


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        ("losses --sort cost", "segexp list hidden_activations --sort cost"),
        ("activations --family smooth", "segexp list hidden_activations --family smooth"),
        ("hidden_activations --family sigmoid", "sigmoidal"),
        ("hidden_activations --sort price", "'cost', 'year'"),
    ],
)
def test_what_cannot_be_sorted_or_chosen_is_refused(words: str, cure: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", *words.split()]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert cure in error


def test_hidden_activations_tell_their_facts_and_what_they_cost() -> None:
    rows = {row["name"]: row for row in listed("hidden_activations")}
    for name, entry in HIDDEN_ACTIVATIONS.items():
        facts = ("zero_centred", "saturates", "can_die", "gain", "overflows_fp16")
        assert [rows[name][fact] for fact in facts] == [getattr(entry, fact) if entry.make else None for fact in facts]
    assert rows["native"]["cost"] is None
    assert rows["relu"]["cost"] == "as relu (1.0)"
    assert [rows["relu"][key] for key in ("forward_cost", "backward_cost", "saved_bytes")] == [1, 1, 4]
    assert rows["rational"]["cost"] == str(measured_costs()["rational"])
    assert set(measured_costs()) <= set(HIDDEN_ACTIVATIONS) - {"native"}
    expected = {0.01: "below relu (0.0)", 1.54: "as relu (1.5)", 1.56: "up to 3x (1.6)", 3.04: "up to 3x (3.0)"}
    for both, shown in (expected | {9.9: "up to 10x (9.9)", 36.84: "above 10x (36.8)"}).items():
        assert str(Cost(1.0, 1.0, both, 4.0)) == shown
