"""Measure which encoders build and train with which architectures, and write segexp/models/buildable.csv.

    python scripts/which_build.py

A cell is "yes" when the network builds at the architecture's default options with random weights, and two images of 7
channels pass it in training mode with logits of the images' size; and so do images of 1 to 6 channels with one
architecture, for channels concern the encoder alone. Only shapes are computed; half an hour of one core does.
"""

import csv
import sys
import warnings
from collections.abc import Iterable

import torch

from segexp.errors import UsageError
from segexp.models.architectures import ARCHITECTURES, BUILDABLE, IN_CHANNELS, encoder_names
from segexp.models.build import check_forward

SIZE = 256
"""Side of the images in pixels: a multiple of every divisor, and enough for every encoder."""

TIMM = (
    "tu-resnet18",
    "tu-convnext_atto",
    "tu-efficientnet_b0",
    "tu-mobilenetv3_small_050",
    "tu-regnety_002",
    "tu-resnest14d",
    "tu-hrnet_w18_small",
    "tu-densenet121",
    "tu-vgg11",
    "tu-pvt_v2_b0",
    "tu-mambaout_femto",
    "tu-vit_tiny_patch16_224",
    "tu-vit_small_patch32_224",
    "tu-deit_tiny_patch16_224",
)
"""One encoder of each of timm's larger families; timm has more than a thousand."""


def trains(architecture: str, encoder: str, in_channels: int) -> bool:
    """Whether the libraries build the network, and two images pass it in training; no rule of ours is asked."""
    entry = ARCHITECTURES[architecture]
    common = {"encoder_name": encoder, "encoder_weights": None, "in_channels": in_channels, "classes": 2}
    # Mix transformers read numbers while they are built, which the meta device does not hold.
    device = "cpu" if encoder.startswith("mit_") else "meta"
    try:
        with torch.device(device):
            network = entry.function(common, **entry.defaults)
        check_forward(network, in_channels, 2, SIZE)
    except (UsageError, KeyError, ValueError, RuntimeError, TypeError, AssertionError):
        return False
    return True


def row(encoder: str) -> dict[str, str]:
    """One line of the table."""
    takes = [name for name in ARCHITECTURES if trains(name, encoder, IN_CHANNELS[-1])]
    # The channels concern the encoder alone, so that one architecture that takes it tells for all.
    if not takes or not all(trains(takes[0], encoder, channels) for channels in IN_CHANNELS):
        takes = []
    return {"encoder": encoder, **{name: "yes" if name in takes else "no" for name in ARCHITECTURES}}


def main(encoders: Iterable[str]) -> None:
    """Measure and write, or with names of encoders on the command line measure and print."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with open(sys.stdout.fileno() if sys.argv[1:] else BUILDABLE, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["encoder", *ARCHITECTURES], lineterminator="\n")
        table.writeheader()
        for encoder in encoders:
            table.writerow(row(encoder))
            file.flush()


if __name__ == "__main__":
    main(sys.argv[1:] or [*encoder_names(), *TIMM])
