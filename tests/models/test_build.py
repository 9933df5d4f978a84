"""Building networks: seeded, strict about names and weights, with a solution when offline."""

from pathlib import Path
from typing import Any

import pytest
import torch

from segexp.errors import UsageError
from segexp.models import build
from segexp.models.architectures import BackboneConfig, weights_sha
from segexp.models.build import build_network, init_sha

OPTIONS = {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}


def network(name: str = "resnet18", weights: str | None = None, channels: int = 1, classes: int = 1):
    return build_network("unet", OPTIONS, BackboneConfig(name, weights), channels, classes, 0)


def test_building_neither_uses_nor_changes_the_global_generator() -> None:
    before = torch.random.get_rng_state()
    first = init_sha(network())
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(5)
    assert init_sha(network()) == first


@pytest.mark.parametrize("channels", [0, 33])
def test_other_numbers_of_input_channels_are_refused(channels: int) -> None:
    with pytest.raises(UsageError, match=rf"\b{channels} channels\b.*\b1 to 32"):
        network(channels=channels)


@pytest.mark.parametrize("prefix", ["", "tu-"])
def test_unknown_encoder_names_the_nearest(prefix: str) -> None:
    with pytest.raises(UsageError, match=rf"backbone\.name={prefix}resnet81; .* {prefix}resnet18\b"):
        network(f"{prefix}resnet81")


def test_offline_weights_give_a_solution_and_do_not_hang(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(build, "_hub_reachable", lambda: False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match=r"backbone.weights=null.*backbone.weights=PATH"):
        network(weights="imagenet")
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("suffix", "prefix"),
    [(".pt", ""), pytest.param(".pt", "encoder.", marks=pytest.mark.slow), (".safetensors", "encoder.")],
)
def test_weights_from_a_file(tmp_path: Path, suffix: str, prefix: str) -> None:
    from safetensors.torch import save_file

    donor: Any = build_network("unet", OPTIONS, BackboneConfig("resnet18", None), 1, 1, 3).encoder
    state = {prefix + name: tensor for name, tensor in donor.state_dict().items()}
    path = tmp_path / f"encoder{suffix}"
    torch.save(state, path) if suffix == ".pt" else save_file(state, path)
    loaded: Any = network(weights=str(path)).encoder
    assert all(torch.equal(tensor, donor.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert len(weights_sha(BackboneConfig("resnet18", str(path)))) == 64


def test_unsuitable_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save(network("resnet34").encoder.state_dict(), path)
    with pytest.raises(UsageError, match=r"backbone\.weights=.*other\.pt.* mobilenet_v2"):
        network("mobilenet_v2", weights=str(path))
    torch.save(network(channels=3).encoder.state_dict(), path)
    with pytest.raises(UsageError, match=r"channels.*conv1\.weight"):
        network(weights=str(path))
    with pytest.raises(UsageError, match=r"backbone\.weights=nowhere\.pt"):
        weights_sha(BackboneConfig("resnet18", "nowhere.pt"))


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    path = tmp_path / "attack.pt"
    torch.save({"encoder.conv1.weight": Attack()}, path)
    with pytest.raises(UsageError, match=r"backbone\.weights=.*attack\.pt"):
        network(weights=str(path))
    assert not (tmp_path / "owned").exists()
