"""``dataset.normalise``: what happens to the stored values of an image before the statistics of the training images."""

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

PERCENTILES = (1.0, 99.0)


@dataclass(frozen=True)
class Rule:
    """name: "train", "image", "percentile" or "ct", which has a window from ``low`` to ``high`` in stored values."""

    name: str
    low: float = 0.0
    high: float = 1.0


AS_STORED = Rule("train")


def rule_of(text: str) -> Rule:
    """The rule of "train", "image", "percentile" or "ct(low,high)". Raises ValueError.

    "full_range" is "train", said where a set has files of 8 and of 16 bits.
    """
    if text == "full_range":
        return AS_STORED
    if text in ("train", "image", "percentile"):
        return Rule(text)
    window = re.fullmatch(r"ct\(([^,()]+),([^,()]+)\)", text.replace(" ", ""))
    try:
        low, high = (float(end) for end in window.groups()) if window else (math.nan, math.nan)
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError("is none of train, image, percentile, full_range, ct(low,high), as in 'ct(-100,300)'")
    return Rule("ct", low, high)


def ruled(image_HWC: "np.ndarray", rule: Rule) -> "np.ndarray":
    """The image under the rule, channel by channel and at native size: unchanged (train), else float32 (H, W, C).

    image: mean 0 and standard deviation 1 of the image itself, a constant channel 0. percentile: the 1st percentile of
    the image becomes 0, the 99th 1, values beyond are cut. ct: the window becomes 0 to 1, values beyond are cut.
    """
    import numpy as np

    if rule.name == "train":
        return image_HWC
    exact_HWC = image_HWC.astype(np.float64)
    if rule.name == "image":
        low_C, width_C = exact_HWC.mean(axis=(0, 1)), exact_HWC.std(axis=(0, 1))
    elif rule.name == "percentile":
        low_C, high_C = np.percentile(exact_HWC, PERCENTILES, axis=(0, 1))
        width_C = high_C - low_C
    else:
        low_C, width_C = np.float64(rule.low), np.float64(rule.high - rule.low)
    scaled_HWC = (exact_HWC - low_C) / np.where(width_C > 1e-12, width_C, 1.0)
    return (scaled_HWC if rule.name == "image" else scaled_HWC.clip(0, 1)).astype(np.float32)


def in_words(rule: Rule) -> str:
    """What `ruled` computes of a channel x, for who applies a rule without segexp; "" for train."""
    return {
        "train": "",
        "image": "(x - m) / s, m and s its mean and standard deviation (s = 1 if it is constant)",
        "percentile": "(x - a) / (b - a) cut to [0, 1], a and b its 1st and 99th percentile (b - a = 1 if equal)",
        "ct": f"(x - {rule.low:.9g}) / {rule.high - rule.low:.9g} cut to [0, 1]",
    }[rule.name]


def shown(image_HWC: "np.ndarray") -> "np.ndarray":
    """The image for the eye, in [0, 1]: integers by their full range, other values from their percentiles."""
    full = {"uint8": 255, "uint16": 65535}.get(image_HWC.dtype.name)
    if full is not None:
        return image_HWC / full
    return ruled(image_HWC, Rule("percentile"))
