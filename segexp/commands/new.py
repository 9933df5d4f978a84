"""`segexp new KIND NAME`: a file with a commented part of your own, to start from."""

import importlib.util
import keyword
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segexp.commands import Parser
from segexp.errors import DONE, UsageError

TEMPLATES = {
    "hidden_activation": '''
import torch; POSITIVE, hidden_activation
# A function of a tensor of any shape, not in place. Keyword-only parameters are options: {use}.beta=2.
# All facts are optional; `segexp check-plugin` tests them, and measures those that are missing.
@hidden_activation(
    formula="x / (1 + e^(-beta x))",
    derivative="s + beta x s (1 - s), s = sigmoid(beta x)",
    range="[-0.2785, inf)",  # at the default options
    saturates="left",  # where the derivative goes to 0: left, right or both
    gain=1.6765,  # 1 / sqrt(E f(z)^2), z ~ N(0, 1)
    source="my paper",
    # learnable=("beta",),  # makes beta the initial value of a parameter, one for each place in the network
)
def {name}(x: torch.Tensor, *, beta: Annotated[float, POSITIVE] = 1.0) -> torch.Tensor:
    """My own hidden activation."""
    return x * torch.sigmoid(beta * x)
''',
    "output_activation": '''
import torch; POSITIVE, output_activation
# The log-odds ln F(x) - ln(1 - F(x)) of the probability F(x), for logits x of any shape in float32 or float64.
# Keyword-only parameters are options: {use}.steepness=3. All facts are optional; `segexp check-plugin` tests them.
@output_activation(
    formula="1 / (1 + (sqrt(1 + x^2) - x)^steepness)",
    tail="algebraic, ~ (2 a)^-steepness",  # of 1 - F(a), a = |x|
    wrong_pixel="steepness / a",  # gradient of the cross-entropy at a pixel that is wrong by a
    slope_at_zero=0.5,  # F'(0) at the default options
    source="my paper",
)
def {name}(x: torch.Tensor, *, steepness: Annotated[float, POSITIVE] = 2.0) -> torch.Tensor:
    """My own output activation."""
    return steepness * torch.asinh(x)
''',
    "loss": '''
import torch; NOT_NEGATIVE, log_odds_of, loss, mean_over, reference_planes
# prediction: `log_odds_of(prediction)` and `prediction.values_NKHW` (probabilities), N images, K channels.
# target: class numbers (N, H, W); 255 is ignored. Keyword-only parameters are options: {use}.power=1.
@loss(
    formula="mean of |y - p|^power * cross-entropy",
    side_effects="pixels that are right already count less",
    source="my paper",
)
def {name}(prediction, target, *, power: Annotated[float, NOT_NEGATIVE] = 2.0) -> torch.Tensor:
    """My own loss."""
    y_NKHW, valid_NHW = reference_planes(prediction, target)
    log_odds_NKHW = log_odds_of(prediction)
    wrong_NKHW = (y_NKHW - torch.sigmoid(log_odds_NKHW)).abs()
    entropy_NKHW = torch.nn.functional.binary_cross_entropy_with_logits(log_odds_NKHW, y_NKHW, reduction="none")
    return mean_over(wrong_NKHW**power * entropy_NKHW, valid_NHW)  # without pixels that are ignored
''',
    "architecture": '''
from torch import nn; Range, architecture
# Any module from images (N, in_channels, H, W) to logits (N, classes, H, W), without a last sigmoid or softmax.
# Keyword-only parameters are options: {use}.width=32. Hidden activations are found and replaced: write them as modules.
@architecture(divisor=2, source="my paper")  # the sides of images are multiples of the divisor
def {name}(in_channels: int, classes: int, *, width: Annotated[int, Range(1)] = 16) -> nn.Module:
    """My own network."""
    first = [nn.Conv2d(in_channels, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    second = [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*first, *second, nn.Upsample(scale_factor=2), nn.Conv2d(width, classes, 1))
''',
    "dataset": '''
import numpy as np; Range, dataset
# Pairs (image, mask): a list, a generator, or any object with len() and [i], such as a torch Dataset.
# image: an array (H, W) or (H, W, C), or a tensor (C, H, W). mask: (H, W), class numbers, 255 is ignored. A pair may go
# on with a name and a group (patient), which is not divided between training and test. Options: {use}.number=60.
@dataset(num_classes=2, image_size=64, class_names=["background", "square"])
def {name}(*, number: Annotated[int, Range(12)] = 40):
    """My own data."""
    for n in range(number):
        draw = np.random.default_rng(n)
        image = np.kron(draw.integers(0, 100, (8, 8)), np.ones((8, 8)))
        mask = np.zeros((64, 64), np.uint8)
        row, column, height, width = draw.integers(8, 32, 4)
        mask[row : row + height, column : column + width] = 1
        yield (image + 100 * mask).astype(np.uint8), mask
''',
    "optimizer": '''
import torch; POSITIVE, Range, optimizer
# parameters: a list of parameter groups, {"params": [...]}, which torch's optimizers take as it is; with learned
# activations two groups. Keyword-only parameters are options: {use}.momentum=0.8. lr is one of them.
@optimizer(formula="gradient descent with momentum", source="my paper")
def {name}(parameters, *, lr: Annotated[float, POSITIVE] = 1e-2, momentum: Annotated[float, Range(0, 1)] = 0.9):
    """My own optimizer."""
    return torch.optim.SGD(parameters, lr=lr, momentum=momentum)
''',
    "scheduler": '''
import torch; POSITIVE, scheduler
# Keyword-only parameters are options: {use}.power=2. The rate changes after every step; with
# moves="validation" after every epoch, by `step(score)`.
@scheduler(formula="lr (1 - step / total_steps)^power", source="my paper")
def {name}(optimizer, total_steps: int, steps_per_epoch: int, *, power: Annotated[float, POSITIVE] = 0.9):
    """My own scheduler."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / total_steps) ** power)
''',
    "score": '''
; score
# Called for each image and foreground class, with NumPy arrays: boolean masks without ignored pixels, the pixels that
# count, and the probability of the class (None with activation=identity). NaN means undefined.
@score(title="share of the reference found", unit="points", higher_is_better=True)
def {name}(predicted_HW, reference_HW, valid_HW, probability_HW) -> float:
    """My own score."""
    if not reference_HW.any():
        return float("nan")
    return (predicted_HW & reference_HW).sum() / reference_HW.sum()
''',
}
"""Kind of a part -> a file with one that passes `segexp check-plugin`; its first line becomes the `HEADER`."""

HEADER = "from typing import Annotated\n\n{library}\n\n"


def parser() -> Parser:
    parser = Parser("new", "example:\n  segexp new hidden_activation my_relu")
    parser.add_argument("kind", metavar="KIND", complete=TEMPLATES, help=", ".join(TEMPLATES))
    parser.add_argument("name", metavar="NAME", help="of the new part: small letters, digits and _")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="default: NAME.py")
    return parser


def command(words: Sequence[str]) -> int:
    options = parser().parse_args(list(words))

    from segexp.config import CODE_GROUPS, members_of
    from segexp.data import adapters
    from segexp.records.scores import OWN_SCORES
    from segexp.registry import Registry, nearest
    from segexp.registry.plugins import GROUPS, entry_name

    kind, name = options.kind, options.name
    if kind not in TEMPLATES:
        of_group = {group: part for part, group in GROUPS.items()}
        raise UsageError(f"cannot make a new '{kind}'{nearest(of_group.get(kind, kind), TEMPLATES)}")
    if not name.isidentifier() or keyword.iskeyword(name) or name != entry_name(name):
        raise UsageError(f"'{name}' is no name: use small letters, digits and _, such as my_part")
    use = GROUPS.get(kind, kind)
    registry: Registry[Any] = {**CODE_GROUPS, "dataset": adapters(), "metrics.scores": OWN_SCORES}[use]
    if name in {*registry.names(), *registry.refused, *(members_of(use) if use == "dataset" else ())}:
        raise UsageError(f"{use}={name} is taken: choose another name")
    path = options.out or Path(f"{name}.py")
    if path.suffix != ".py":
        raise UsageError(f"-o {path} must end in .py")
    if not path.parent.is_dir():
        folder = shlex.quote(str(path.parent))
        raise UsageError(f"-o {path}: the folder {folder} does not exist: mkdir -p {folder}")
    if options.out is None and not path.exists() and importlib.util.find_spec(name):
        raise UsageError(f"{path} would hide the Python module {name}: choose another name, or another file with -o")
    imports, _, part = TEMPLATES[kind].lstrip("\n").partition("\n")
    library, names = imports.split("; ")
    text = f"{HEADER.format(library=library) if library else ''}from segexp.plugin import {names}\n\n\n{part}"
    text = text.replace("{use}", use).replace("{name}", name)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{path} exists: choose another file with -o") from None
    chosen = f"'{use}=[{name}]'" if kind == "score" else f"{use}={name}"
    print(f"written: {path}\nnext:\n  segexp check-plugin {path}\n  segexp train --plugin {path} {chosen}")
    return DONE
