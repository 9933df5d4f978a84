"""The head: logits_NCHW -> log-odds -> `Prediction`. The one place where an output activation is applied.

Shapes: K logit channels are 1 (binary: two classes), C - 1 (independent) or C (softmax), C classes counting the
background; F = C - 1 foreground classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from segexp.activations.output import HeadMode, OutputActivation

if TYPE_CHECKING:
    import torch


def head_mode(num_classes: int, mode: str) -> HeadMode:
    """The mode in force: two classes are one logit, whatever ``head.mode`` says."""
    if num_classes == 2:
        return "binary"
    if mode not in ("softmax", "independent"):
        raise ValueError(f"unknown head mode {mode!r}: softmax or independent")
    return "softmax" if mode == "softmax" else "independent"


def logit_channels(num_classes: int, mode: HeadMode) -> int:
    """K, the number of channels the network puts out."""
    return {"binary": 1, "independent": num_classes - 1, "softmax": num_classes}[mode]


@dataclass(frozen=True)
class Prediction:
    """What a network says about every pixel, in float32 or better.

    log_odds_NKHW: phi of the logits; None for activations without probabilities.
    values_NKHW: the probabilities, or the raw values of `identity`; computed when asked for.
    """

    mode: HeadMode
    logits_NKHW: "torch.Tensor"
    log_odds_NKHW: "torch.Tensor | None"

    @property
    def values_NKHW(self) -> "torch.Tensor":
        """Probabilities in [0, 1] (softmax: summing to 1 over K), or raw values without an activation."""
        if self.log_odds_NKHW is None:
            return self.logits_NKHW
        if self.mode == "softmax":
            return self.log_odds_NKHW.softmax(dim=1)
        return self.log_odds_NKHW.sigmoid()

    def evidence_NFHW(self) -> "torch.Tensor":
        """Evidence for each foreground class against all else: positive exactly where the class is chosen by itself.

        With probabilities it is the one-vs-rest log-odds ln p_c - ln(1 - p_c); without, x - 1/2 (softmax: z_c minus
        the best other). Ranking and thresholds use this, never p, which rounds to ties in float32.
        """
        scores = self.logits_NKHW if self.log_odds_NKHW is None else self.log_odds_NKHW
        if self.mode != "softmax":
            return scores - 0.5 if self.log_odds_NKHW is None else scores
        import torch

        rest = torch.amax if self.log_odds_NKHW is None else torch.logsumexp
        columns = []
        for c in range(1, scores.shape[1]):
            others = torch.cat((scores[:, :c], scores[:, c + 1 :]), dim=1)
            columns.append(scores[:, c] - rest(others, 1))
        return torch.stack(columns, dim=1)

    def foreground_NFHW(self) -> "torch.Tensor":
        """Boolean decision for each foreground class: phi > 0, or the argmax over classes under softmax."""
        if self.mode != "softmax":
            return self.evidence_NFHW() > 0
        import torch

        scores = self.logits_NKHW if self.log_odds_NKHW is None else self.log_odds_NKHW
        chosen_NHW = scores.argmax(dim=1)
        return torch.stack([chosen_NHW == c for c in range(1, scores.shape[1])], dim=1)

    def ties_NHW(self) -> "torch.Tensor":
        """Boolean: pixels with no decision, phi == 0 in any channel or two equal best classes under softmax."""
        if self.mode != "softmax":
            return (self.evidence_NFHW() == 0).any(dim=1)
        scores = self.logits_NKHW if self.log_odds_NKHW is None else self.log_odds_NKHW
        best_two = scores.topk(2, dim=1).values
        return best_two[:, 0] == best_two[:, 1]


Head = Callable[["torch.Tensor"], Prediction]


def make_head(activation: OutputActivation, mode: HeadMode, params: Mapping[str, Any] | None = None) -> Head:
    """The function logits_NKHW -> `Prediction`.

    Half-precision logits are raised to float32 and autocast is off inside: x * x overflows fp16 at |x| = 256, and the
    gradient of a bf16 sigmoid is exactly 0 beyond x = 6.24.
    """
    options = dict(params or {})

    def head(logits_NKHW: "torch.Tensor") -> Prediction:
        import torch

        with torch.autocast(device_type=logits_NKHW.device.type, enabled=False):
            exact = logits_NKHW if logits_NKHW.dtype == torch.float64 else logits_NKHW.float()
            phi = None if activation.log_odds is None else activation.log_odds(exact, **options)
        return Prediction(mode, exact, phi)

    return head
