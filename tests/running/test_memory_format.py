"""`trainer.format` and `trainer.precision`: what auto is, what a run records, and that results stay reproducible."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from messages import mentions
from tiny import interrupted_run, tables, tiny_config, tiny_run

from segexp import cli
from segexp.config import changed_from_defaults
from segexp.errors import UsageError
from segexp.models.architectures import memory_format
from segexp.models.build import MEMORY_FORMATS
from segexp.records import flatten, read_table
from segexp.running import hardware, prepare
from segexp.running.build import built_of
from segexp.running.hardware import cuda_capability, without_auto
from segexp.sweep import _overrides
from segexp.sweep.plan import Job

SIZES_12 = np.array([[100, 130]])


@pytest.fixture
def capability(monkeypatch: pytest.MonkeyPatch):
    """Makes this a Linux machine whose GPU has this capability, 0 for none."""

    def pretend(major: int) -> None:
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(hardware, "cuda_capability", lambda: major)

    return pretend


@pytest.mark.parametrize(("device", "size", "model", "expected"), [
    ("cpu", 96, "unet", "contiguous"),
    ("cpu", 128, "unet", "channels_last"),
    ("cuda", 32, "unet", "channels_last"),
    ("mps", 512, "unet", "contiguous"),
    ("cuda", 512, "mine", "contiguous"),
])  # fmt: skip
def test_the_rule_of_the_format(device: str, size: int, model: str, expected: str) -> None:
    assert memory_format(device, size, model) == expected


def test_the_size_of_the_rule_is_that_of_the_input(capability, tmp_path: Path) -> None:
    """The largest image, padded to a multiple of 8 px; a window of 64 px, or images resized to it, count as 64."""
    capability(0)
    config = tiny_config(tmp_path)
    for fit, asked, side, expected in (
        ("pad", None, 121, "channels_last"), ("pad", None, 120, "contiguous"), ("pad", 64, 999, "contiguous"),
        ("resize", 64, 999, "contiguous"), ("resize", 128, 32, "channels_last"),
    ):  # fmt: skip
        config.dataset = dataclasses.replace(config.dataset, fit=fit, image_size=asked)
        assert without_auto(config, np.array([[32, side]])).trainer.format == expected


@pytest.mark.parametrize(("asked", "major", "expected"), [
    ("auto", 9, "bf16"), ("auto", 8, "bf16"), ("auto", 7, "fp32"), ("cuda", 8, "bf16"), ("mps", 0, "fp32"),
])  # fmt: skip
def test_bf16_where_the_device_has_it(asked: str, major: int, expected: str, capability, tmp_path: Path) -> None:
    capability(major)
    config = tiny_config(tmp_path, f"trainer.device={asked}", "trainer.precision=auto")
    assert without_auto(config, SIZES_12).trainer.precision == expected


def test_a_gpu_that_cannot_be_asked_is_an_error(capability, tmp_path: Path) -> None:
    capability(0)
    config = tiny_config(tmp_path, "trainer.device=cuda", "trainer.precision=auto")
    with pytest.raises(UsageError) as error:
        without_auto(config, SIZES_12)
    assert mentions(str(error.value), "trainer.precision=auto", "trainer.precision=bf16")


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="only Linux lists what the CPU has")
def test_the_cpu_and_the_gpu_are_those_that_torch_sees(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "trainer.precision=auto")
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert without_auto(config, SIZES_12).trainer.precision == ("bf16" if native else "fp32")
    cuda_capability.cache_clear()
    assert cuda_capability() == (torch.cuda.get_device_capability(0)[0] if torch.cuda.is_available() else 0)


def test_what_auto_was_enters_the_identity_unless_it_was_contiguous(capability, tmp_path: Path) -> None:
    capability(0)
    plain = prepare(tiny_config(tmp_path, "trainer.device=auto"))
    assert plain.config.trainer.format == "contiguous"
    asked = prepare(tiny_config(tmp_path, "trainer.device=auto", "trainer.format=channels_last"))
    capability(8)
    on_gpu = prepare(tiny_config(tmp_path, "trainer.device=auto"))
    assert on_gpu.config.trainer.format == "channels_last"
    assert on_gpu.identity == asked.identity != plain.identity
    same = prepare(tiny_config(tmp_path, "trainer.device=auto", "trainer.format=contiguous"))
    assert same.identity == plain.identity


def test_a_job_of_another_machine_gets_what_was_planned(capability, tmp_path: Path) -> None:
    capability(8)
    spec = prepare(tiny_config(tmp_path, "trainer.device=auto", "trainer.precision=auto"))
    words = _overrides(Job("", ("trainer.precision=auto",), spec))
    assert {"trainer.format=channels_last", "trainer.precision=bf16"} < set(words)
    assert words.index("trainer.precision=bf16") > words.index("trainer.precision=auto")


def test_a_recorded_format_is_a_change_where_auto_on_a_cpu_is_another(tmp_path: Path) -> None:
    flat = flatten(tiny_config(tmp_path))
    for size, format, shown in (
        (64, "contiguous", False), (64, "channels_last", True), (128, "channels_last", False),
        (128, "contiguous", True), (128, "auto", False),
    ):  # fmt: skip
        changed = changed_from_defaults({**flat, "dataset.image_size": size, "trainer.format": format})
        assert ("trainer.format" in changed) == shown


def test_the_network_keeps_its_format_whatever_the_images_have(tmp_path: Path) -> None:
    """Every feature map, so that no layer copies; and logits and gradients are those of the contiguous network."""
    images_NCHW = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def results(format: torch.memory_format) -> list[torch.Tensor]:
        network = built_of(tiny_config(tmp_path), 3, 64).network.eval().to(memory_format=format)
        outputs: list[torch.Tensor] = []
        for layer in (m for m in network.modules() if isinstance(m, torch.nn.Conv2d)):
            layer.register_forward_hook(lambda module, given, output: outputs.append(output))
        logits_NKHW = network(images_NCHW)
        logits_NKHW.square().mean().backward()
        assert len(outputs) > 10
        assert all(output.is_contiguous(memory_format=format) for output in outputs)
        return [logits_NKHW.detach(), *(p.grad for p in network.parameters() if p.grad is not None)]

    for a, b in zip(*map(results, MEMORY_FORMATS.values()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_a_dry_run_prints_what_auto_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["dataset.number=24", "dataset.image_size=32", "backbone.name=tu-test_resnet", "trainer.device=cpu"]
    assert cli.main(["train", *words, f"outputs={tmp_path}", "--dry-run"]) == 0
    assert mentions(capsys.readouterr().out, "format: contiguous", "precision: fp32")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_channels_last_run_is_repeatable(precision: str, tmp_path: Path) -> None:
    """Continued it is bit-equal; evaluated again it has the same tables; its record has its format; it is exported."""
    words = ("trainer.format=channels_last", f"trainer.precision={precision}", "hidden_activation=gelu")
    whole = tiny_run(tmp_path / "whole", *words)
    interrupted_run(tmp_path / "parts", 2, *words)
    parts = tiny_run(tmp_path / "parts", *words)
    assert parts.status == whole.status == "done"
    assert tables(parts.run_dir) == tables(whole.run_dir)
    device = json.loads((parts.run_dir / "run.json").read_text())["device"]
    assert (device["memory_format"], device["precision"]) == ("channels_last", precision)
    assert cli.main(["evaluate", str(parts.run_dir)]) == 0
    again = read_table(parts.run_dir / "evaluations" / "test-0.5" / "images.csv", "images")
    own = read_table(parts.run_dir / "images.csv", "images")
    assert own[own["split"] == "test"].reset_index(drop=True).equals(again)
    file = tmp_path / "weights.safetensors"
    assert cli.main(["export", str(parts.run_dir), "--format", "safetensors", "--out", str(file)]) == 0
    assert file.exists()
