"""Building networks: seeded, strict about names and weights, clear when offline."""

from pathlib import Path

import pytest
import torch
from tiny import tiny_config

from segexp.activations.output import logit_channels
from segexp.config import mode_of
from segexp.errors import UsageError
from segexp.models import build
from segexp.models.architectures import BackboneConfig, weights_sha
from segexp.models.build import build_network, init_sha

OPTIONS = {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}


def network(name: str = "resnet18", weights: str | None = None, channels: int = 1, classes: int = 1, seed: int = 0):
    return build_network("unet", OPTIONS, BackboneConfig(name, weights), channels, classes, seed)


def test_weights_move_with_the_seed_alone_and_leave_the_global_generator() -> None:
    before = torch.random.get_rng_state()
    first = init_sha(network())
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(5)
    assert init_sha(network()) == first
    assert init_sha(network(seed=1)) != first


def test_init_sha_leaves_out_the_final_bias_alone() -> None:
    one = network()
    sha = init_sha(one)
    with torch.no_grad():
        one.segmentation_head[0].bias.add_(1)
    assert init_sha(one) == sha
    with torch.no_grad():
        one.segmentation_head[0].weight[0, 0, 0, 0] += 1
    assert init_sha(one) != sha


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_input_channels(channels: int) -> None:
    assert network(channels=channels, classes=3)(torch.zeros(2, channels, 32, 32)).shape == (2, 3, 32, 32)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [((), 1), (("dataset.num_classes=4",), 4), (("dataset.num_classes=4", "head.mode=independent"), 3)],
)
def test_logit_channels(tmp_path: Path, overrides: tuple[str, ...], expected: int) -> None:
    config = tiny_config(tmp_path, *overrides)
    assert logit_channels(config.dataset.num_classes, mode_of(config)) == expected


@pytest.mark.parametrize("channels", [0, 8])
def test_other_numbers_of_input_channels_are_refused(channels: int) -> None:
    with pytest.raises(UsageError, match=f"^images of {channels} channels: networks take 1 to 7"):
        network(channels=channels)


def test_network_ends_in_logits() -> None:
    """No activation after the last convolution: it is the head's, applied once."""
    assert all(not isinstance(m, torch.nn.Sigmoid | torch.nn.Softmax) for m in network().segmentation_head.modules())


def test_unknown_encoder_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="resnet18"):
        network("resnet81")


def test_unknown_timm_encoder_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"^unknown timm encoder backbone\.name=tu-resnet81; did you mean tu-resnet18"):
        network("tu-resnet81")


def test_offline_weights_give_a_cure_and_no_hang(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(build, "_hub_reachable", lambda: False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match=r"backbone.weights=null.*backbone.weights=PATH"):
        network(weights="imagenet")
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_weights_from_a_file(tmp_path: Path, suffix: str, prefix: str) -> None:
    donor = network(seed=3)
    state = {prefix + name: tensor for name, tensor in donor.encoder.state_dict().items()}
    path = tmp_path / f"encoder{suffix}"
    if suffix == ".pt":
        torch.save(state, path)
    else:
        from safetensors.torch import save_file

        save_file(state, path)
    loaded = network(weights=str(path))
    assert all(torch.equal(t, donor.encoder.state_dict()[n]) for n, t in loaded.encoder.state_dict().items())
    assert len(weights_sha(BackboneConfig("resnet18", str(path)))) == 64


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save(network("resnet34").encoder.state_dict(), path)
    with pytest.raises(UsageError, match="are not the weights of mobilenet_v2"):
        network("mobilenet_v2", weights=str(path))
    torch.save(network(channels=3).encoder.state_dict(), path)
    with pytest.raises(UsageError, match=r"shapes differ, first conv1\.weight"):
        network(channels=1, weights=str(path))


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    path = tmp_path / "attack.pt"
    torch.save({"encoder.conv1.weight": Attack()}, path)
    with pytest.raises(UsageError, match="cannot be read as weights"):
        network(weights=str(path))
    assert not (tmp_path / "owned").exists()


def test_missing_weight_file() -> None:
    with pytest.raises(UsageError, match="no such file"):
        weights_sha(BackboneConfig("resnet18", "nowhere.pt"))
