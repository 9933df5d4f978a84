"""Hidden activations: time of both passes as a multiple of relu's, and bytes kept for the backward pass."""

from collections.abc import Iterable

from benchmarks import Row, benchmark, counted, ratios
from segexp.commands.bench import BASELINE, device_of, hidden_names, timings

TORCH_KERNELS = ("mish", "rrelu", "telu", "snake")
"""Whose time is that of torch's own kernels, for each element: mish takes an exponential, a logarithm and a tanh, rrelu
a random number, telu an exponential and a tanh, snake a sine and a cosine. In a cache a tanh takes the time of 20
multiplications, a sine that of 10, a cosine 6, an exponential 4."""


@benchmark("Hidden activations, forward and backward, as multiples of relu")
def hidden(quick: bool) -> Iterable[Row]:
    """Bounds of time hold on a CPU."""
    names, device = hidden_names(()), device_of("auto")
    times, saved = timings(names, device, (1, 4, 16, 16) if quick else (8, 64, 64, 64), 2 if quick else 51)
    bounded = [name for name in names if device.type == "cpu" and name not in TORCH_KERNELS]
    both = {name: times[:, n, 2].tolist() for n, name in enumerate(names)}
    yield from ratios(both, BASELINE, dict.fromkeys(bounded, ("<=", 8.0)))
    for name, number in zip(names, saved, strict=True):
        yield counted(f"{name}: kept for the backward pass", round(number, 3), "bytes an element", ("<=", 8.0))
