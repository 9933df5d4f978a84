"""Where a non-finite number comes from: the first bad layer of one training step, found by repeating it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from segexp.activations.head import Head, Prediction

if TYPE_CHECKING:
    import torch


def first_bad_layer(
    network: "torch.nn.Module",
    forward: Callable[["torch.Tensor"], "torch.Tensor"],
    head: Head,
    loss_of: Callable[[Prediction, "torch.Tensor"], "torch.Tensor"],
    images_NCHW: "torch.Tensor",
    masks_NHW: "torch.Tensor",
) -> str:
    """Repeat the step and name, in the order of computing, the first thing that is not finite.

    Input, output of a layer, loss, or else the gradient of the last layer (the first reached by backpropagation) that
    has a bad one.
    """
    import torch

    if not images_NCHW.isfinite().all():
        return "the input image is not finite"
    bad: list[str] = []
    reached: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: "torch.nn.Module", inputs: Any, output: Any) -> None:
            reached.append(name)
            if isinstance(output, torch.Tensor) and not output.isfinite().all():
                bad.append(f"the output of {name} ({type(module).__name__}) is not finite")

        return hook

    leaves = [(name, module) for name, module in network.named_modules() if not any(module.children())]
    handles = [module.register_forward_hook(watch(name)) for name, module in leaves]
    try:
        network.zero_grad(set_to_none=True)
        prediction = head(forward(images_NCHW))
        if bad:
            return bad[0]
        loss = loss_of(prediction, masks_NHW)
        if not loss.isfinite():
            return f"the loss is {loss.item()} although every logit is finite"
        loss.backward()
    finally:
        for handle in handles:
            handle.remove()
    for name in reversed(reached):
        module = network.get_submodule(name)
        if any(p.grad is not None and not p.grad.isfinite().all() for p in module.parameters(recurse=False)):
            return f"the gradient of {name} ({type(module).__name__}) is not finite"
    return "the loss was not finite, and is finite when the step is repeated"
