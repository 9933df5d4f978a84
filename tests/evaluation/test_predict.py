from collections.abc import Iterator

import numpy as np
import pytest
import torch

from segexp.activations.head import make_head
from segexp.activations.output import OUTPUT_ACTIVATIONS, HeadMode
from segexp.data.batches import InputGeometry, Normalisation, Sample, ScoringBatch, scoring_batches
from segexp.evaluation.predict import Scored, make_forward, predict
from segexp.losses import IGNORE

CPU = torch.device("cpu")
RESOLUTIONS = ("native", "network")


def bilinear(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resized with pixels as areas (centres at half indices) and edges that continue."""

    def weights(n_from: int, n_to: int) -> np.ndarray:
        table = np.zeros((n_to, n_from))
        for i in range(n_to):
            centre = min(max((i + 0.5) * n_from / n_to - 0.5, 0.0), n_from - 1.0)
            low = int(centre)
            table[i, low] += 1 - (centre - low)
            table[i, min(low + 1, n_from - 1)] += centre - low
        return table

    return weights(plane.shape[0], height) @ plane @ weights(plane.shape[1], width).T


def batch_of(images: torch.Tensor, native: tuple[int, int], *, padded: bool) -> ScoringBatch:
    """Images at network resolution; random truth at both."""
    draw = torch.Generator().manual_seed(1)
    n, _, height, width = images.shape
    native_masks = torch.randint(0, 2, (n, *native), generator=draw, dtype=torch.uint8)
    if padded:
        masks = torch.full((n, height, width), IGNORE, dtype=torch.uint8)
        masks[:, : native[0], : native[1]] = native_masks
    else:
        masks = torch.randint(0, 2, (n, height, width), generator=draw, dtype=torch.uint8)
    return ScoringBatch(tuple(range(10, 10 + n)), images, masks, native_masks, padded)


def as_logits(images: torch.Tensor) -> torch.Tensor:
    """A network whose logits are its input."""
    return images


def predicted(batch: ScoringBatch, resolution: str, activation: str = "sigmoid", mode: HeadMode = "binary") -> Scored:
    (scored,) = predict(as_logits, make_head(OUTPUT_ACTIVATIONS[activation], mode), [batch], CPU, resolution)
    return scored


@pytest.mark.parametrize("native", [(9, 14), (3, 2), (8, 5), (4, 8)])
@pytest.mark.parametrize("activation", OUTPUT_ACTIVATIONS)
def test_native_resizes_the_logits_and_then_applies_the_activation(activation: str, native: tuple[int, int]) -> None:
    images = torch.randn(2, 1, 4, 6, generator=torch.Generator().manual_seed(0)) * 4
    batch = batch_of(images, native, padded=False)
    scored = predicted(batch, "native", activation, OUTPUT_ACTIVATIONS[activation].modes[0])
    resized = np.array([bilinear(image[0].double().numpy(), *native) for image in images])
    assert scored.prediction.logits_NKHW[:, 0].numpy() == pytest.approx(resized, abs=1e-5)
    assert scored.indices == (10, 11)
    assert torch.equal(scored.target_NHW, batch.native_masks_NHW)
    log_odds = OUTPUT_ACTIVATIONS[activation].log_odds
    if log_odds is None:
        assert scored.prediction.log_odds_NKHW is None
    else:
        assert scored.prediction.log_odds_NKHW is not None
        # Of the logits as they are in float32: next to its ends a clipped map turns rounding into 1e-4.
        expected = log_odds(scored.prediction.logits_NKHW.double())[:, 0].numpy()
        assert scored.prediction.log_odds_NKHW[:, 0].numpy() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(("padded", "native"), [(True, (5, 11)), (False, (5, 11)), (False, (8, 12))])
@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_padding_is_cut_off_and_the_loss_sees_network_resolution(
    resolution: str, padded: bool, native: tuple[int, int]
) -> None:
    """Images of the network's size, and all at network resolution, are left as they are."""
    images = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    batch = batch_of(images, native, padded=padded)
    scored = predicted(batch, resolution, mode="softmax")
    if resolution == "network" or native == (8, 12):
        assert torch.equal(scored.prediction.logits_NKHW, images)
        assert torch.equal(scored.target_NHW, batch.masks_NHW)
    elif padded:
        assert torch.equal(scored.prediction.logits_NKHW, images[:, :, :5, :11])
        assert scored.target_NHW.max() < IGNORE
    if resolution == "native" and native != (8, 12):
        assert torch.equal(scored.target_NHW, batch.native_masks_NHW)
    prediction, target = scored.network
    assert torch.equal(prediction.logits_NKHW, images)
    assert torch.equal(target, batch.masks_NHW)


def test_half_precision_logits_are_raised_before_anything_else() -> None:
    """fp16 has no value between 1000 and 1000.5, which resizing needs, and squares overflow in it from 256."""
    images = torch.tensor([[1000.0, 1001.0]]).view(1, 1, 1, 2)
    head = make_head(OUTPUT_ACTIVATIONS["inverse_square_root"], "binary")
    (scored,) = predict(lambda x: x.half(), head, [batch_of(images, (1, 4), padded=False)], CPU, "native")
    assert scored.prediction.logits_NKHW.flatten().tolist() == [1000.0, 1000.25, 1000.75, 1001.0]
    assert scored.prediction.log_odds_NKHW is not None
    wanted = 2 * np.arcsinh([1000.0, 1000.25, 1000.75, 1001.0])
    assert scored.prediction.log_odds_NKHW.flatten().numpy() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_forward_runs_under_the_precision(precision: str, dtype: torch.dtype) -> None:
    network = torch.nn.Conv2d(3, 1, 1)
    forward = make_forward(network, CPU, precision)
    assert forward(torch.zeros(1, 3, 4, 4)).dtype == dtype
    assert not torch.is_autocast_enabled("cpu"), "only inside"


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_no_gradient_reaches_the_network(resolution: str) -> None:
    network = torch.nn.Conv2d(1, 1, 1)
    head = make_head(OUTPUT_ACTIVATIONS["sigmoid"], "binary")
    batch = batch_of(torch.zeros(1, 1, 4, 4), (6, 6), padded=False)
    (scored,) = predict(make_forward(network, CPU, "fp32"), head, [batch], CPU, resolution)
    for prediction in (scored.prediction, scored.network[0]):
        assert not prediction.logits_NKHW.requires_grad
        assert not prediction.evidence_NFHW().requires_grad


def test_batches_are_taken_one_at_a_time_and_autograd_stays_on_between_them() -> None:
    """The memory of a split is that of a batch."""
    taken: list[int] = []

    def batches() -> Iterator[ScoringBatch]:
        for i in range(3):
            taken.append(i)
            yield batch_of(torch.zeros(1, 1, 4, 4), (6, 6), padded=False)

    head = make_head(OUTPUT_ACTIVATIONS["sigmoid"], "binary")
    for number, _ in enumerate(predict(as_logits, head, batches(), CPU, "native")):
        assert taken == list(range(number + 1))
        assert not torch.is_inference_mode_enabled()
        weight = torch.ones((), requires_grad=True)
        (3 * weight).backward()
        assert weight.grad == 3


@pytest.mark.parametrize("how", ["resize", "pad"])
def test_images_of_all_sizes_come_back_at_their_own(how: str) -> None:
    """Through the real batches: every image once, in order, scored against its own mask at its own size."""
    sizes = [(5, 9), (5, 9), (8, 8), (12, 3), (12, 3), (12, 3)]
    draw = torch.Generator().manual_seed(2)
    masks = [torch.randint(0, 2, size, generator=draw, dtype=torch.uint8) for size in sizes]

    def read(index: int) -> Sample:
        mask = masks[index]
        if how == "pad":
            return Sample(mask[None].float(), mask, mask)
        image = torch.nn.functional.interpolate(mask[None, None].float(), (8, 8), mode="nearest-exact")[0]
        return Sample(image, image[0].to(torch.uint8), mask)

    batches = list(
        scoring_batches(
            read, InputGeometry(how, 8, 8), Normalisation((0.5,), (1.0,)), range(6), np.array(sizes), batch_size=2
        )
    )
    head = make_head(OUTPUT_ACTIVATIONS["sigmoid"], "binary")
    scored = list(predict(as_logits, head, batches, CPU, "native"))
    assert [i for s in scored for i in s.indices] == list(range(6))
    for s in scored:
        for n, index in enumerate(s.indices):
            assert torch.equal(s.target_NHW[n], masks[index])
            assert s.prediction.logits_NKHW.shape[2:] == masks[index].shape
            if how == "pad":
                assert torch.equal(s.prediction.foreground_NFHW()[n, 0], masks[index] == 1)
