"""Augmentation: what it does to pixels, its distributions, and that a sample does not depend on its batch."""

from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from segexp.data import augment as augmentation
from segexp.data import seeded
from segexp.data.augment import ALPHA, Augment, displacement, make_augment, normal_field
from segexp.data.image_set import AugmentConfig
from segexp.losses import IGNORE

STRONG = {
    "flip_horizontal": 0.5, "flip_vertical": 0.5, "rotate_degrees": 45.0, "translate": 0.1, "scale": 0.25,
    "brightness": 1.0, "contrast": 0.3, "noise": 0.15, "elastic": 0.5,
}  # fmt: skip
GEOMETRIC = ("flip_horizontal", "flip_vertical", "rotate_degrees", "translate", "scale", "elastic")
NAMES = [f"image {n}" for n in range(28)]


def config(**changes: float) -> AugmentConfig:
    return AugmentConfig(name="test", **{**dict.fromkeys(STRONG, 0.0), **changes})


def augment_of(**changes: float) -> Augment:
    augment = make_augment(config(**changes), 0)
    assert augment is not None
    return augment


def standard(images: torch.Tensor) -> torch.Tensor:
    return images.float().div(128).sub_(1)


def stored(number: int, side: int = 40, channels: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (number, channels, side, side), dtype=torch.uint8, generator=drawn)
    return images, torch.randint(0, 3, (number, side, side), dtype=torch.uint8, generator=drawn)


def test_nothing_to_do_is_no_augmentation() -> None:
    assert make_augment(config(), 0) is None


@pytest.mark.parametrize("name", STRONG)
def test_every_option_acts_and_depends_on_seed_epoch_and_image_alone(name: str) -> None:
    augment = augment_of(**{name: 1.0 if name in ("flip_horizontal", "flip_vertical", "elastic") else STRONG[name]})
    images, masks = stored(4)
    state = torch.random.get_rng_state()
    seen, masks_seen = augment(images, masks, 1, NAMES[:4], standard)
    again, masks_again = augment(images, masks, 1, NAMES[:4], standard)
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is left as it was"
    assert torch.equal(seen, again)
    assert torch.equal(masks_seen, masks_again)
    assert masks_seen.dtype == torch.uint8
    assert not torch.equal(seen, standard(images))
    assert torch.equal(masks_seen, masks) == (name not in GEOMETRIC)
    if not name.startswith("flip"):
        others = [augment(images, masks, 2, NAMES[:4], standard), augment(images, masks, 1, NAMES[4:8], standard)]
        others.append(Augment(augment.config, 1)(images, masks, 1, NAMES[:4], standard))
        assert all(not torch.equal(seen, other) for other, _ in others)


@pytest.mark.parametrize("elastic", [0.0, 0.5])
@pytest.mark.parametrize("batch", [1, 4, 7])
def test_a_sample_is_the_same_in_every_batch(batch: int, elastic: float) -> None:
    """Bit for bit, and for each type in which images are stored."""
    augment = augment_of(**{**STRONG, "elastic": elastic})
    images, masks = stored(28)
    for given in (images, images.to(torch.uint16), images.to(torch.int16), images.float()):
        whole, masks_whole = augment(given, masks, 1, NAMES, standard)
        for start in range(0, 28, batch):
            part = slice(start, start + batch)
            seen, masks_seen = augment(given[part], masks[part], 1, NAMES[part], standard)
            assert torch.equal(seen, whole[part])
            assert torch.equal(masks_seen, masks_whole[part])


def test_flips_move_pixels_and_round_nothing() -> None:
    images, masks = stored(28)
    seen, masks_seen = augment_of(flip_horizontal=0.5, flip_vertical=0.5)(images, masks, 1, NAMES, lambda x: x.float())
    found = []
    for n in range(28):
        axes: Any = [a for a in ((), (2,), (1,), (1, 2)) if torch.equal(seen[n], images[n].flip(a).float())]
        assert len(axes) == 1
        assert torch.equal(masks_seen[n], masks[n].flip([a - 1 for a in axes[0]]))
        found += axes
    assert len(set(found)) == 4


def test_images_that_do_not_move_are_not_touched() -> None:
    """Without rotation or scale a shift is of whole pixels; half of the images have no elastic change."""
    images, masks = stored(28)
    seen, masks_seen = augment_of(elastic=0.5)(images, masks, 1, NAMES, standard)
    same_N = (seen == standard(images)).all(dim=(1, 2, 3))
    assert 6 <= same_N.sum() <= 22
    assert torch.equal(masks_seen[same_N], masks[same_N])
    assert not any(torch.equal(a, b) for a, b in zip(masks_seen[~same_N], masks[~same_N], strict=True))
    shifted, _ = augment_of(translate=0.1)(images, masks, 1, NAMES, standard)
    inside = shifted[:, :, 4:-4, 4:-4]
    places = standard(images).unfold(2, 32, 1).unfold(3, 32, 1)
    assert ((places - inside[:, :, None, None]).abs().amax(dim=(1, 4, 5)).amin(dim=(1, 2)) < 1e-5).all()


def test_image_and_mask_move_together_and_outside_is_ignored() -> None:
    """An image that equals its mask still does after every geometric change, but where pixels came from outside."""
    masks = torch.zeros(8, 64, 64, dtype=torch.uint8)
    masks[:, 10:40, 20:50] = 1
    augment = augment_of(**{name: STRONG[name] for name in GEOMETRIC})
    images, moved = augment(masks.unsqueeze(1), masks, 1, NAMES[:8], lambda x: x.float())
    valid = moved != IGNORE
    assert set(moved.unique().tolist()) == {0, 1, IGNORE}
    assert ((images[:, 0] > 0.5) == (moved == 1))[valid].float().mean() > 0.99
    assert (images[:, 0][~valid] <= 0.5).all()
    assert all(0.5 < share < 1 for share in valid.float().mean((1, 2)))


def moments(images: torch.Tensor) -> np.ndarray:
    """Of 1-channel images: mean, and the mean centre and second moments of the bright area with their spreads."""
    weight = images.flatten(1).clamp_min(0)
    place = torch.linspace(-1, 1, images.shape[-1])
    y, x = (p.flatten() for p in torch.meshgrid(place, place, indexing="ij"))
    columns = [(weight * v).sum(1) / weight.sum(1) for v in (x, y, x * x, y * y, x * y)] + [weight.sum(1)]
    table = torch.stack(columns, 1).numpy()
    return np.concatenate([table.mean(0), table.std(0)])


def test_affine_changes_have_the_distribution_of_torchvision() -> None:
    image = torch.zeros(1, 48, 48)
    image[0, 20:28, 14:38] = 1
    number, options = 400, {"rotate_degrees": 30.0, "translate": 0.1, "scale": 0.2}
    names = [str(n) for n in range(number)]
    images, masks = image.expand(number, 1, 48, 48), torch.zeros(number, 48, 48, dtype=torch.uint8)
    seen, _ = augment_of(**options)(images, masks, 1, names, torch.clone)
    theirs = v2.RandomAffine(30, (0.1, 0.1), (0.8, 1.2), interpolation=v2.InterpolationMode.BILINEAR, fill=0.0)
    with seeded(0, "test"):
        expected = torch.stack([theirs(image) for _ in range(number)])
    mine, other = moments(seen), moments(expected)
    error = other[6:] / np.sqrt(number)  # of a mean; that of a standard deviation is smaller
    assert (np.abs(mine - other) < 5 * np.concatenate([error, error])).all(), (mine, other, error)


@pytest.mark.parametrize("side", [24, 43, 128])
def test_the_elastic_field_has_the_covariance_of_torchvision(side: int) -> None:
    """Along one axis, at every pair of pixels: of white noise blurred, and reflected at the border."""
    blurred = v2.functional.gaussian_blur(torch.eye(side).unsqueeze(0), [41, 1], [5.0, 5.0])[0].numpy().T
    expected, found = blurred @ blurred.T, augmentation._spread(side) @ augmentation._spread(side).T
    assert np.abs(found - expected).max() < 0.06 * expected.max()
    middle = expected[side // 2, side // 2]
    assert np.abs(found - expected)[10:-10, 10:-10].max() < 0.02 * middle


def test_the_elastic_field_has_the_strength_of_torchvision() -> None:
    """(ALPHA / 2)^2 / 3 times the variance of the blurred noise, for both axes, which are independent."""
    drawn = np.random.default_rng(0).integers(-(2**31), 2**31, (2, 400)).astype(np.int32)
    dx, dy = torch.from_numpy(drawn)
    strength = torch.where(torch.arange(400) == 0, 0.0, ALPHA / 2 / np.sqrt(3))
    field = displacement(dx, dy, strength, (44, 44))
    assert (field[0] == 0).all()
    middle = field[1:, :, 12:32, 12:32]
    assert middle.mean() == pytest.approx(0.0, abs=0.02)
    assert middle.square().mean((0, 2, 3)).tolist() == pytest.approx([75 / (4 * np.pi * 25)] * 2, rel=0.1)
    assert (middle[:, 0] * middle[:, 1]).mean() == pytest.approx(0.0, abs=0.02)
    assert displacement(dx, dy, strength, (8, 9)).shape == (400, 2, 8, 9)


def test_noise_is_normal_and_its_fields_are_independent() -> None:
    noise = normal_field(torch.arange(64, dtype=torch.int32), (3, 64, 65))
    for power, expected in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        assert (noise**power).mean() == pytest.approx(expected, abs=0.03)
    flat = noise.flatten(1)
    between = (flat @ flat.T / flat.shape[1]).fill_diagonal_(0)
    assert between.abs().max() < 6 / np.sqrt(flat.shape[1])
    assert all((noise * noise.roll(by, dim)).mean().abs() < 0.005 for dim in (1, 2, 3) for by in (1, 2))


def test_intensities_have_their_ranges() -> None:
    images, masks = stored(28)
    seen, _ = augment_of(brightness=1.0, contrast=0.3)(images, masks, 1, NAMES, standard)
    shift_N = (seen - standard(images)).mean((1, 2, 3))
    gain_N = seen.std((1, 2, 3)) / standard(images).std((1, 2, 3))
    assert shift_N.min() > -1
    assert shift_N.max() < 1
    assert shift_N.std() > 0.4
    assert gain_N.min() > 0.7
    assert gain_N.max() < 1.3
    assert gain_N.std() > 0.12


def test_nothing_waits_for_the_device_and_shapes_are_fixed() -> None:
    """On "meta" there are no values: whatever read one would fail."""
    images, masks = (tensor.to("meta") for tensor in stored(4))
    seen, masks_seen = augment_of(**STRONG)(images, masks, 1, NAMES[:4], standard)
    assert (seen.shape, seen.dtype, seen.device.type) == (images.shape, torch.float32, "meta")
    assert (masks_seen.shape, masks_seen.dtype) == (masks.shape, torch.uint8)


def test_rounding_changes_as_little_as_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound on differences between devices: with every random number and place off by 8 units of float32's last."""
    drawn = torch.rand(28, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    smooth = torch.nn.functional.interpolate(drawn, size=(128, 128), mode="bicubic")
    images, masks = smooth.sub(0.5).mul(4), (smooth[:, 0] > 0.5).to(torch.uint8)
    augment = augment_of(**STRONG)
    seen, masks_seen = augment(images, masks, 1, NAMES, torch.clone)
    ulps = 8 * torch.finfo(torch.float32).eps
    for name in ("_grid", "normal_field"):
        of_device = getattr(augmentation, name)
        off = lambda *args, of_device=of_device: of_device(*args) * (1 + ulps) + ulps / 2  # noqa: E731
        monkeypatch.setattr(augmentation, name, off)
    other, masks_other = augment(images, masks, 1, NAMES, torch.clone)
    assert 0 < (seen - other).abs().max() < 1e-3
    assert 0 < (masks_seen != masks_other).float().mean() < 1e-3
