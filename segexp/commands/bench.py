"""`segexp bench activations`: time and memory of hidden activations on this machine."""

import argparse
import math
import time
import timeit
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segexp.commands import Parser, imported
from segexp.errors import DONE, UsageError

if TYPE_CHECKING:
    import torch

BASELINE = "relu"

BLOCK_S = 0.02
"""Seconds that one timing takes at least: many calls of a quick function, one of a slow one."""

MAX_CALLS = 10_000

MAX_ELEMENTS = 2**27
"""Of the input; on a GPU rational works with twenty float32 numbers per element."""

STATEMENTS = ("module(x)", "torch.autograd.grad(y, inputs, gradient, retain_graph=True)")
"""What is timed, forward and backward. Gradients are returned, not accumulated: accumulation costs the same for all."""

BRIEF = (
    *("name", "forward_ms", "forward", "forward_iqr", "backward_ms", "backward", "backward_iqr"),
    *("both", "both_iqr", "saved_bytes", "saved"),
)
"""Columns of the plain table. The others are equal in all rows and are printed above it."""

EPILOG = """\
columns: milliseconds per call; forward, backward and both as multiples of relu's (median over the rounds, and
interquartile range); bytes kept for the backward pass per element, and as a multiple of relu's.

examples:
  segexp bench activations
  segexp bench activations relu gelu mish --shape 16,64,256,256 --rounds 30
"""


def parser() -> Parser:
    parser = Parser("bench", EPILOG)
    add = parser.add_argument
    add("what", metavar="activations", complete=("activations",))
    add(
        "names",
        nargs="*",
        metavar="NAME",
        complete=lambda: list(imported("segexp.activations.hidden", "function_names")()),
        help="hidden activations (default: all)",
    )
    add("--json", action="store_true", help="print the measurements as JSON")
    add("--csv", type=Path, metavar="FILE", help="also write the measurements to a CSV file")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto uses a CUDA GPU if there is one")
    add("--shape", default="8,64,64,64", metavar="N,C,H,W", help="shape of the input (default: %(default)s)")
    add("--rounds", type=_rounds, default=15, metavar="R", help="default: %(default)s")
    return parser


def _rounds(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def command(words: Sequence[str]) -> int:
    options = parser().parse_args(list(words))

    from segexp.records import write_atomic
    from segexp.records.formatting import csv_table, json_table, text_table
    from segexp.registry import nearest

    if options.what != "activations":
        raise UsageError(f"cannot bench '{options.what}'{nearest(options.what, ['activations'])}")
    names, shape = hidden_names(options.names), shape_of(options.shape)
    if options.csv is not None and not options.csv.absolute().parent.is_dir():
        raise UsageError(f"--csv {options.csv}: the folder {options.csv.absolute().parent} does not exist")
    device = device_of(options.device)
    common = setting(device, shape, options.rounds)
    rows = [row | common for row in measure(names, device, shape, options.rounds)]
    if options.csv is not None:
        write_atomic(options.csv, csv_table(rows))
    if options.json:
        print(json_table(rows))
    else:
        print("{device}; torch {torch}; {dtype} of shape {shape}; rounds: {rounds}".format(**common))
        print(text_table([{name: row[name] for name in BRIEF} for row in rows], width=140))
    return DONE


def hidden_names(names: Sequence[str]) -> list[str]:
    """The entries to measure, relu first; no name means all. Raises UsageError for what cannot be measured."""
    from segexp.activations.hidden import HIDDEN_ACTIVATIONS, function_names
    from segexp.config import alias_target

    wanted = [alias_target("hidden_activation", name)[0] for name in names]
    for name in wanted:
        if HIDDEN_ACTIVATIONS[name].make is None:
            raise UsageError(f"{name} stands for the activations of the encoder, which have no cost of their own")
    return list(dict.fromkeys([BASELINE, *(wanted or function_names())]))


def shape_of(text: str) -> tuple[int, ...]:
    """ "8,64,64,64" -> (8, 64, 64, 64), sides in pixels. Raises UsageError."""
    parts = text.split(",")
    numbers = [int(part) for part in parts if part.isdecimal()]
    if len(parts) != 4 or len(numbers) != 4 or min(numbers) < 1:
        raise UsageError(f"--shape {text}: give four whole numbers N,C,H,W of at least 1, such as 8,64,64,64")
    if math.prod(numbers) > MAX_ELEMENTS:
        raise UsageError(f"--shape {text}: more than {MAX_ELEMENTS} elements; use fewer images or channels")
    return tuple(numbers)


def device_of(name: str) -> "torch.device":
    """The device of ``--device``: auto is a CUDA GPU if there is one. Raises UsageError."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda is not available here; see `segexp doctor`, or use --device auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def setting(device: "torch.device", shape: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """The conditions of the measurement: columns that are equal in all rows."""
    import torch

    cpu = f"CPU ({torch.backends.cpu.get_cpu_capability()}), threads: {torch.get_num_threads()}"
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "torch": torch.__version__,
        "shape": "x".join(map(str, shape)),
        "dtype": "float32",
        "rounds": rounds,
    }


def measure(names: Sequence[str], device: "torch.device", shape: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """One row per activation, in the order of ``names``, of which one is relu.

    Columns: forward_ms and backward_ms per call (median over the rounds); forward, backward and both together as
    multiples of relu's, each the median of the ratios within a round with its interquartile range (_iqr);
    saved_bytes, kept for the backward pass per element of the input; saved, that as a multiple of relu's.
    """
    import torch

    times, saved = timings(names, device, shape, rounds)
    base = list(names).index(BASELINE)
    quartiles = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    low, middle, high = (times / times[:, base : base + 1]).quantile(quartiles, dim=0)
    ms = 1000 * times.quantile(0.5, dim=0)
    rows = []
    for n, name in enumerate(names):
        row: dict[str, Any] = {"forward_ms": ms[n, 0], "backward_ms": ms[n, 1]}
        for k, part in enumerate(("forward", "backward", "both")):
            row |= {part: middle[n, k], f"{part}_iqr": high[n, k] - low[n, k]}
        row |= {"saved_bytes": saved[n], "saved": saved[n] / saved[base]}
        rows.append({"name": name, **{key: float(f"{float(value):.4g}") for key, value in row.items()}})
    return rows


def timings(
    names: Sequence[str], device: "torch.device", shape: tuple[int, ...], rounds: int
) -> "tuple[torch.Tensor, list[float]]":
    """Seconds per call (round, activation, 3: forward, backward, both) in turns, and the `saved_bytes` of each."""
    import torch
    from tqdm import tqdm

    from segexp.activations.hidden import HIDDEN_ACTIVATIONS, make_hidden
    from segexp.data import generator, seeded
    from segexp.running.entry_check import defaults_of

    times = torch.zeros(rounds, len(names), 3, dtype=torch.float64)
    with seeded(0, "bench", device=device):
        x = torch.randn(shape, device=device, requires_grad=True)
        gradient = torch.randn_like(x)
        defaults = {name: defaults_of(HIDDEN_ACTIVATIONS[name].options) for name in names}
        modules = [make_hidden(n, defaults[n], channels=shape[1]).to(device).train() for n in names]
        once = [_seconds(module, x, gradient) for module in modules]
        calls = [tuple(min(math.ceil(BLOCK_S / s), MAX_CALLS) for s in seconds) for seconds in once]
        order = generator(0, "bench", "order")
        with tqdm(total=times[..., 0].numel(), unit="timing", disable=None, leave=False) as bar:
            for this_round in times:
                for n in torch.randperm(len(names), generator=order).tolist():
                    forward, backward = _seconds(modules[n], x, gradient, calls[n])
                    this_round[n] = torch.tensor([forward, backward, forward + backward])
                    bar.update()
        return times, [saved_bytes(module, x) for module in modules]


def _seconds(
    module: "torch.nn.Module", x: "torch.Tensor", gradient: "torch.Tensor", calls: tuple[int, ...] = (1, 1)
) -> tuple[float, float]:
    """Seconds per call forward and backward, after warm-up calls; ``gradient`` is the gradient of the output."""
    import torch

    def clock() -> float:
        if x.is_cuda:  # whose work goes on after the call
            torch.cuda.synchronize(x.device)
        return time.perf_counter()

    known = {"torch": torch, "module": module, "x": x, "gradient": gradient}
    known |= {"y": module(x), "inputs": [x, *module.parameters()]}
    timers = [timeit.Timer(statement, timer=clock, globals=known) for statement in STATEMENTS]
    for timer in timers:
        timer.timeit(2)
    forward, backward = (timer.timeit(number) / number for timer, number in zip(timers, calls, strict=True))
    return forward, backward


def saved_bytes(module: "torch.nn.Module", x: "torch.Tensor") -> float:
    """Bytes per element of x that a call keeps for the backward pass, its input or output included.

    Each storage counts once, parameters do not count. A convolution that follows keeps the output anyway, so an
    activation that saves 4 bytes per element adds nothing there if it saves its output (relu), and all 4 if it saves
    its input (gelu).
    """
    import torch

    kept: list[torch.Tensor] = []

    def keep(tensor: "torch.Tensor") -> "torch.Tensor":
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(x)
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    for parameter in module.parameters():
        sizes.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(sizes.values()) / x.numel()
