"""Losses of shape: of the distance to the contour of the reference, and of skeletons.

Distances are in pixels of the network's input, not normalised: the weight of such a loss depends on the image size.
Distances and skeletons are of single foreground classes and need hard labels. An ignored pixel is of no class and of no
background: distances go to labelled pixels only.
"""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

from segexp.losses import Maps, loss, map_functions, maps_of, mean_over, valid_pixels
from segexp.losses.region import Planes, Reduction, dice, mean_of_classes, planes_of, ratio
from segexp.registry import POSITIVE, Range

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from segexp.activations.head import Prediction


def signed_distances(planes_FHW: "np.ndarray", valid_HW: "np.ndarray", **_: Any) -> "np.ndarray":
    """Distance of each pixel to the nearest of the other kind: outside a class to the class, inside it, negative, to
    what is not of the class; 0 where there is none, as in an image without the class, and on ignored pixels.

    Float32 (F, H, W), at least 1 in size.
    """
    import numpy as np
    from scipy.ndimage import distance_transform_edt

    maps_FHW = np.zeros(planes_FHW.shape, np.float32)
    for map_HW, inside_HW in zip(maps_FHW, planes_FHW & valid_HW, strict=True):
        outside_HW = valid_HW & ~inside_HW
        if inside_HW.any() and outside_HW.any():
            map_HW[outside_HW] = distance_transform_edt(~inside_HW)[outside_HW]
            map_HW[inside_HW] = -distance_transform_edt(~outside_HW)[inside_HW]
    return maps_FHW


def tubed_skeletons(planes_FHW: "np.ndarray", valid_HW: "np.ndarray", *, tube: int = 2, **_: Any) -> "np.ndarray":
    """1 on the skeleton of each class, made ``tube`` pixels wider on each side within the class, else 0.

    Float32 (F, H, W).
    """
    import numpy as np
    from scipy.ndimage import binary_dilation

    within_FHW = planes_FHW & valid_HW
    skeletons = map(skeleton, within_FHW)
    # iterations=0 would repeat until nothing changes.
    wider = [binary_dilation(thin_HW, iterations=tube) if tube else thin_HW for thin_HW in skeletons]
    return (np.stack(wider) & within_FHW).astype(np.float32)


def _removable() -> "np.ndarray":
    """Boolean (2, 256): whether the two passes of Guo and Hall remove a pixel with these neighbours: bit k for the
    k-th, clockwise from the one above."""
    import numpy as np

    near = (np.arange(256)[:, None] >> np.arange(8) & 1).astype(bool)
    n, ne, e, se, s, sw, w, nw = near.T
    runs = sum(x.astype(int) for x in (~n & (ne | e), ~e & (se | s), ~s & (sw | w), ~w & (nw | n)))
    pairs = [np.sum([near[:, i] | near[:, (i + 1) % 8] for i in (k, k + 2, k + 4, k + 6)], axis=0) for k in (0, 1)]
    fewer = np.minimum(*pairs)
    on_edge = (runs == 1) & (fewer >= 2) & (fewer <= 3)
    return np.stack([on_edge & ~((n | ne | ~se) & e), on_edge & ~((s | sw | ~nw) & w)])


def skeleton(mask_HW: "np.ndarray") -> "np.ndarray":
    """The pixels that thinning leaves (Guo and Hall 1989, doi:10.1145/62065.62074), boolean (H, W)."""
    import numpy as np

    padded = np.pad(mask_HW, 1)
    inside, row = padded.reshape(-1), padded.shape[1]
    around = (-row, 1 - row, 1, row + 1, row, row - 1, -1, -row - 1)
    left = np.flatnonzero(inside)
    near = np.zeros(inside.size, np.uint8)
    for k, step in enumerate(around):
        near[left] |= inside[left + step].astype(np.uint8) << k
    changed = True
    while changed:
        changed = False
        for table in _removable():
            removed = table[near[left]]
            gone, left = left[removed], left[~removed]
            for k, step in enumerate(around):
                near[gone - step] &= 255 - (1 << k)
            changed |= gone.size > 0
    inside[:] = False
    inside[left] = True
    return padded[1:-1, 1:-1]


def _hard_planes(name: str, prediction: "Prediction", target: "Tensor") -> Planes:
    """Raises ValueError for soft labels."""
    if target.is_floating_point():
        raise ValueError(f"{name} takes hard labels only, because distances and skeletons are of sets")
    return planes_of(prediction, target, "foreground")


def _planes_and_map(
    name: str, prediction: "Prediction", target: "Tensor", maps: Maps | None, **options: Any
) -> tuple[Planes, "Tensor"]:
    """Planes, and the loss's map (N, F, H, W); not given, it is computed from the target, for which the host waits."""
    planes = _hard_planes(name, prediction, target)
    if maps is None:
        maps = maps_of(map_functions(name, options), target, prediction.classes, prediction.overlapping)
    return planes, maps[name].to(prediction.logits_NKHW)


@loss(
    formula="mean p phi, phi the signed distance to the reference, in pixels: d outside, 1 - d inside",
    side_effects="cannot be trained alone from scratch (an empty prediction is nearly as good): add it to dice, with a "
    "weight of about 0.01; negative where right; grows with the image size; 0 without the class in the image",
    source="Kervadec et al. 2019, arXiv:1812.07032",
    maps=signed_distances,
)
def boundary(prediction: "Prediction", target: "Tensor", maps: Maps | None = None) -> "Tensor":
    """Boundary loss: mean over pixels and foreground classes of p times the signed distance to the reference.

    phi is 0 on the outermost pixels of a class, as in the authors' code. maps: see `Loss`. Raises ValueError for soft
    labels.
    """
    planes, signed = _planes_and_map("boundary", prediction, target, maps)
    return mean_over(planes.p * (signed + (signed < 0)), planes.weight[:, 0] > 0)


@loss(
    formula="mean (p - y)^2 (d_G^alpha + d_P^alpha), the distances to the contour of the reference and of the decision",
    side_effects="cannot be trained alone from scratch: add it to dice, with a small weight; grows with the image size "
    "to the power alpha; d_P takes time in each step (two_sided=false leaves it out); no distance without the class",
    source="Karimi and Salcudean 2020, arXiv:1904.10030",
    maps=signed_distances,
)
def hausdorff_dt(
    prediction: "Prediction",
    target: "Tensor",
    maps: Maps | None = None,
    *,
    alpha: Annotated[float, Range(0, 10, above=True)] = 2.0,  # the largest powers of distances fit float32
    two_sided: bool = True,
) -> "Tensor":
    """Distance-transform loss of the Hausdorff distance: mean over pixels and foreground classes.

    d is the distance to the nearest pixel of the other kind. two_sided: with d_P, computed in each step on the device,
    see `contour_distances`. maps: see `Loss`. Raises ValueError for soft labels.
    """
    planes, signed = _planes_and_map("hausdorff_dt", prediction, target, maps)
    weight = signed.abs().pow(alpha)
    if two_sided:
        weight = weight + contour_distances(prediction.foreground_NFHW(), valid_pixels(target)).to(weight).pow(alpha)
    return mean_over((planes.p - planes.y).square() * weight, planes.weight[:, 0] > 0)


def contour_distances(planes_NFHW: "Tensor", valid_NHW: "Tensor") -> "Tensor":
    """`signed_distances` without their sign, float32 (N, F, H, W), on the device of the planes."""
    import numpy as np
    import torch

    if planes_NFHW.device.type != "cpu":
        return parallel_distances(planes_NFHW, valid_NHW)
    pairs = zip(planes_NFHW.numpy(), valid_NHW.numpy(), strict=True)
    return torch.from_numpy(np.stack([abs(signed_distances(*pair)) for pair in pairs]))


def parallel_distances(planes_NFHW: "Tensor", valid_NHW: "Tensor") -> "Tensor":
    """`contour_distances` for a GPU, which never waits: all rows at once along the columns, then column by column.

    As exact, but in a time that grows with H W^2: on a CPU it takes ten times as long.
    """
    import torch

    valid = valid_NHW.unsqueeze(1)
    seeds = torch.stack((planes_NFHW & valid, ~planes_NFHW & valid))
    height, width = seeds.shape[-2:]
    rows = torch.arange(height, device=seeds.device, dtype=torch.float32).unsqueeze(1)
    columns = torch.arange(width, device=seeds.device, dtype=torch.float32)
    above = rows.where(seeds, -torch.inf).cummax(-2).values
    below = rows.where(seeds, torch.inf).flip(-2).cummin(-2).values.flip(-2)
    in_column = (rows - above).minimum(below - rows).square()
    nearest = torch.full_like(in_column, torch.inf)
    for column in range(width):
        nearest = nearest.minimum(in_column[..., column, None] + (columns - column).square())
    to_class, to_rest = nearest.sqrt()
    distances = to_rest.where(planes_NFHW, to_class)
    return distances.where(distances.isfinite() & valid, 0.0)


@loss(
    formula="1 - mean_c sum p s / sum s, s the skeleton of the reference, wider by tube pixels on each side",
    side_effects="recall only: alone it makes everything foreground, so add it to dice or ce",
    source="Kirchhoff et al. 2024, arXiv:2404.03010",
    maps=tubed_skeletons,
)
def skeleton_recall(
    prediction: "Prediction",
    target: "Tensor",
    maps: Maps | None = None,
    *,
    tube: Annotated[int, Range(0, 1000)] = 2,  # more takes as long as it is wide
    reduction: Reduction = "batch",
) -> "Tensor":
    """Skeleton recall loss, mean over the classes that the pool holds.

    Each class has a skeleton of its own (the authors thin the union of all classes). reduction: as for `dice`. maps:
    see `Loss`. Raises ValueError for soft labels.
    """
    planes, tubes = _planes_and_map("skeleton_recall", prediction, target, maps, tube=tube)
    both, _, length = dataclasses.replace(planes, y=tubes).sums(reduction)
    return mean_of_classes(1 - ratio(both, length, 0.0), length, "skip", planes.class_weight_K)


@loss(
    formula="(1 - alpha) dice + alpha (1 - mean_c 2 T S / (T + S)), T = (sum s_p y + s) / (sum s_p + s), "
    "S = (sum s_y p + s) / (sum s_y + s), s_p and s_y the soft skeletons",
    side_effects="for thin structures; the skeletons of wide ones need iterations of at least their radius, each of "
    "which takes time and memory",
    source="Shit et al. 2021, arXiv:2003.07311",
)
def cl_dice(
    prediction: "Prediction",
    target: "Tensor",
    *,
    alpha: Annotated[float, Range(0, 1)] = 0.5,
    iterations: Annotated[int, Range(1, 1000)] = 10,  # each keeps images for the backward pass
    smooth: Annotated[float, POSITIVE] = 1.0,
    reduction: Reduction = "batch",
) -> "Tensor":
    """Centreline Dice with `dice`, mean over the foreground classes that the pool's reference holds.

    iterations: of the soft skeleton, in pixels of the largest radius. reduction: as for `dice`. Raises ValueError for
    soft labels.
    """
    planes = _hard_planes("cl_dice", prediction, target)
    thin_p, thin_y = (
        soft_skeleton(values.to(planes.p.dtype), planes.weight > 0, iterations) * planes.weight
        for values in (planes.p, planes.y)
    )
    precise, on_p, truth = dataclasses.replace(planes, p=thin_p).sums(reduction)
    sensitive, _, on_y = dataclasses.replace(planes, y=thin_y).sums(reduction)
    precision, sensitivity = ratio(precise, on_p, smooth), ratio(sensitive, on_y, smooth)
    centreline = 1 - 2 * precision * sensitivity / (precision + sensitivity)
    overlap = dice(prediction, target, reduction=reduction)
    return (1 - alpha) * overlap + alpha * mean_of_classes(centreline, truth, "skip", planes.class_weight_K)


def soft_skeleton(values: "Tensor", valid: "Tensor", iterations: int) -> "Tensor":
    """The differentiable skeleton of arXiv:2003.07311, algorithm 1, of (N, K, H, W) in [0, 1].

    Ignored pixels change nothing: they are full in an erosion and empty in a dilation, as is all outside the image.
    """
    import torch
    import torch.nn.functional as F

    thin = torch.zeros_like(values)
    for _ in range(iterations + 1):
        negative = -values.where(valid, 1.0)
        eroded = -F.max_pool2d(negative, (3, 1), 1, (1, 0)).maximum(F.max_pool2d(negative, (1, 3), 1, (0, 1)))
        ridge = F.relu(values - F.max_pool2d(eroded.where(valid, 0.0), 3, 1, 1))
        thin = thin + F.relu(ridge - thin * ridge)
        values = eroded
    return thin
