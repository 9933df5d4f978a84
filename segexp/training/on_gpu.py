"""What makes training steps quick on a GPU, whose kernels wait for the host that starts them: head and loss compiled
into few kernels, and whole passes captured as a CUDA graph."""

import functools
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch

from segexp.losses import Maps

log = logging.getLogger("segexp")

COMPILED_ON = ("cuda",)  # kinds of devices on which head and loss are compiled
COMPILED_FROM = 10_000  # steps of a run: the compiler takes 10 s, and saves 2 ms of a step, 0.1 ms of a captured one
CAPTURED_ON = ("cuda",)  # kinds of devices on which passes are captured

CAPTURED_AFTER = 2  # batches of one shape, in which libraries choose their kernels and torch.compile does its work
CAPTURED_SHARE = 1 / 8
"""Of the memory of a card, what a run may take for its passes to be captured: a graph keeps the memory of a step, and
the steps beside it need as much again. Where a step takes more, the card is what it waits for, not the host."""

Measure = Callable[[torch.Tensor, torch.Tensor, Maps], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
"""(logits_NKHW, masks_NHW, maps that the loss needs) -> loss, counts_NF3 of `mask_counts`, share of logits that are not
finite: all on the device."""

Passes = Measure
"""(images_NCHW, masks_NHW, maps) -> what a measure returns of the network's output, with the gradients of the loss in
the parameters."""


class Compiled:
    """A measure by torch.compile for each shape of its input; as it is where that fails, or gives another gradient for
    its first batch, which the log says.

    learned: parameters whose gradients are compared besides that of the logits.
    """

    def __init__(self, measure: Measure, learned: Sequence[torch.nn.Parameter]) -> None:
        torch.compiler.reset()  # a process compiles few variants of one function, and may have trained other runs
        self.compiled: Measure = torch.compile(measure, dynamic=False)
        self.measure, self.learned = measure, learned
        self.chosen: dict[torch.Size, Measure] = {}

    @property
    def everywhere(self) -> bool | None:
        """Whether it is compiled for all shapes so far; None before the first."""
        return self.measure not in self.chosen.values() if self.chosen else None

    def __call__(
        self, logits_NKHW: torch.Tensor, masks_NHW: torch.Tensor, maps: Maps
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if logits_NKHW.shape not in self.chosen:
            failed = self.everywhere is False  # and has been reported
            self.chosen[logits_NKHW.shape] = self.measure if failed else self._choose(logits_NKHW, masks_NHW, maps)
        return self.chosen[logits_NKHW.shape](logits_NKHW, masks_NHW, maps)

    def _choose(self, logits_NKHW: torch.Tensor, masks_NHW: torch.Tensor, maps: Maps) -> Measure:
        def gradients_of(function: Measure) -> list[torch.Tensor]:
            loss, inputs = function(logits_NKHW, masks_NHW, maps)[0], [logits_NKHW, *self.learned]
            found = torch.autograd.grad(loss, inputs, allow_unused=True)
            return [torch.zeros(()) if gradient is None else gradient.float() for gradient in found]

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the compiler, about itself
                found = gradients_of(self.compiled)
        except Exception as error:  # of any kind: without a C compiler, by a function of the user's own ...
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        else:
            plain = gradients_of(self.measure)
            if not all(gradient.isfinite().all() for gradient in plain) or all(
                (mine - true).norm() <= 0.01 * true.norm() for mine, true in zip(found, plain, strict=True)
            ):
                return self.compiled
            reason = "compiled they give another gradient"
        log.warning("head and loss are not compiled, which costs some percent of speed: %s", reason)
        return self.measure


class Captured:
    """Passes that are replayed as one CUDA graph where a batch has the largest shape, once that came often enough; as
    they are for any other, for batches with maps, and where capturing fails.

    A replay calls no Python: what decides by numbers of the host, draws from their generators or watches layers must
    not be captured. Hence only runs without plugins are.
    """

    def __init__(self, passes: Passes, parameters: Sequence[torch.nn.Parameter], other_bytes: int) -> None:
        """other_bytes: of the memory in use, what a step does not take."""
        self.passes, self.parameters, self.other_bytes = passes, parameters, other_bytes
        self.seen: Counter[torch.Size] = Counter()
        self.inputs: list[torch.Tensor] = []
        self.outputs: list[torch.Tensor] = []
        self.gradients: list[torch.Tensor | None] = []
        self.replay: Callable[[], None] | None = None
        self.tried = False

    def __call__(
        self, images_NCHW: torch.Tensor, masks_NHW: torch.Tensor, maps: Maps
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if maps:
            return self.passes(images_NCHW, masks_NHW, maps)
        shape = images_NCHW.shape
        self.seen[shape] += 1
        if not self.tried and self.seen[shape] > CAPTURED_AFTER and shape.numel() == max(s.numel() for s in self.seen):
            self.tried = True
            self._capture(images_NCHW, masks_NHW)
        if self.replay is None or shape != self.inputs[0].shape:
            return self.passes(images_NCHW, masks_NHW, maps)
        for kept, given in zip(self.inputs, (images_NCHW, masks_NHW), strict=True):
            kept.copy_(given)
        self.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        loss, counts_NF3, frac_nonfinite = (output.clone() for output in self.outputs)  # the next replay writes there
        return loss, counts_NF3, frac_nonfinite

    def _capture(self, images_NCHW: torch.Tensor, masks_NHW: torch.Tensor) -> None:
        if not has_room(images_NCHW.device, self.other_bytes):
            log.info("training steps are not captured as a CUDA graph: they take too much of the card's memory")
            return
        inputs = [images_NCHW.clone(), masks_NHW.clone()]
        try:
            replay, outputs = captured(lambda: self.passes(inputs[0], inputs[1], {}))
        except Exception as error:  # of any kind: a layer that waits for the device, too little memory ...
            for parameter in self.parameters:
                parameter.grad = None  # of passes that never ran
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            log.warning("training steps are not captured as a CUDA graph, which costs speed: %s", reason)
            return
        self.inputs, self.outputs, self.replay = inputs, [one.detach() for one in outputs], replay
        self.gradients = [parameter.grad for parameter in self.parameters]


def has_room(device: torch.device, other_bytes: int) -> bool:
    """Whether what this run took at most, without these bytes, is a small part of the memory of the card, of which
    twice as much is free: other processes may use it."""
    taken = torch.cuda.max_memory_allocated(device) - other_bytes
    if taken > CAPTURED_SHARE * torch.cuda.get_device_properties(device).total_memory:
        return False
    torch.cuda.empty_cache()  # of earlier steps: a graph has memory of its own
    return torch.cuda.mem_get_info(device)[0] >= 2 * taken


@functools.cache
def _stream(device: int) -> torch.cuda.Stream:
    """One for all captures: libraries keep memory for each stream."""
    return torch.cuda.Stream(device)


_FAILED: list[torch.cuda.CUDAGraph] = []
"""Captures that failed: some versions of torch go on asking them whether memory is theirs."""


def captured(
    passes: Callable[[], Sequence[torch.Tensor]],
) -> tuple[Callable[[], None], Sequence[torch.Tensor]]:
    """What runs these passes again, on the same memory, and where they leave their results. They have not run yet.

    Not `torch.cuda.graph`, which collects garbage and forbids other threads, which prepare batches, to use the device.
    """
    graph, stream = torch.cuda.CUDAGraph(), _stream(torch.cuda.current_device())
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        try:
            graph.capture_begin(capture_error_mode="thread_local")
            outputs = passes()
            graph.capture_end()
        except BaseException:
            _FAILED.append(graph)
            with suppress(RuntimeError):
                graph.capture_end()
            # Whatever has failed, the generator of random numbers only leaves a capture that ends well.
            empty = torch.cuda.CUDAGraph()
            empty.capture_begin(capture_error_mode="thread_local")
            torch.zeros((), device="cuda")
            empty.capture_end()
            raise
    torch.cuda.current_stream().wait_stream(stream)
    return graph.replay, outputs
