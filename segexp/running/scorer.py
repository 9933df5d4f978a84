"""A network with all that its predictions of a run's images need."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from segexp.activations.head import Head
from segexp.running.prepare import Prepared

if TYPE_CHECKING:
    import torch

    from segexp.data.batches import Fit, Normalisation, Read, ScoringBatch
    from segexp.evaluation.predict import Scored


@dataclass(frozen=True)
class Scorer:
    """fit, read, normalise: how the images of ``prepared`` come to the network, which is on ``device``."""

    prepared: Prepared
    network: "torch.nn.Module"
    head: Head
    device: "torch.device"
    fit: "Fit"
    read: "Read"
    normalise: "Normalisation"

    def batches(self, members: Sequence[int]) -> "Iterable[ScoringBatch]":
        """These images and masks as they are scored, in batches of equal size."""
        from segexp.data.batches import scoring_batches

        sizes, batch_size = self.prepared.facts.sizes_N2, self.prepared.config.trainer.batch_size
        return scoring_batches(self.read, self.fit, self.normalise, members, sizes, batch_size)

    def predictions(self, images: str | Sequence[int], flips: Sequence[tuple[int, ...]] = ((),)) -> "Iterator[Scored]":
        """Predictions of a split (by name) or of single images (by index), at scoring resolution, with the weights as
        they are. flips: see `segexp.evaluation.predict.FLIPS`."""
        from segexp.evaluation.predict import make_forward, predict

        config = self.prepared.config
        members = self.prepared.split[images] if isinstance(images, str) else images
        self.network.eval()
        forward = make_forward(self.network, self.device, config.trainer.precision)
        return predict(forward, self.head, self.batches(members), self.device, config.metrics.resolution, flips)
