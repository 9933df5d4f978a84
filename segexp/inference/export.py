"""A finished run's network as a file for other software, read back and compared with the run.

onnx: ONNX Runtime; pt2: `torch.export.load`; safetensors: weights; smp: a folder for `smp.from_pretrained`.
"""

import copy
import functools
import io
import json
import logging
import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack, redirect_stdout, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load, save

from segexp.activations.output import OUTPUT_ACTIVATIONS
from segexp.config import Config
from segexp.config.compose import recorded_config
from segexp.data.normalise import PERCENTILES, Rule
from segexp.errors import UsageError, first_line
from segexp.evaluation.pictures import fixed_choice
from segexp.inference.published import facts_of, placed
from segexp.models.architectures import ARCHITECTURES
from segexp.records import read_run, text_rows
from segexp.records.formatting import pluralize
from segexp.running import opened
from segexp.running.build import ProbabilityModel, Trained, trained, untrained

TOLERANCE = 1e-4
"""The largest difference of a probability with which a file is the run's network (float32)."""

CROP = 1024
"""Sides in pixels to which larger images of the check are cropped."""

METADATA = "segexp.json"
"""The facts as JSON: in a pt2 archive, the header of safetensors, the folder of smp. onnx has a property for each."""

Function = Callable[[torch.Tensor], torch.Tensor]  # images_NCHW -> the output of the written file


class Exported(NamedTuple):
    """difference: the largest of a probability; summary: what was written, and what it was checked on."""

    path: Path
    difference: float
    summary: tuple[str, str]


class DifferentError(Exception):
    """The written file does not compute what the run's network computes. It is removed."""


class Deployed(torch.nn.Module):
    """The exported network in eval mode: normalised images_NCHW -> logits_NKHW, or with its head images as
    `own_images` gives them -> probabilities_NKHW."""

    def __init__(self, run: Trained, with_head: bool) -> None:
        super().__init__()
        self.network, self._run, self._with_head = run.network, run, with_head
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        run = self._run
        return run.head(self.network(scaled(images, run))).values_NKHW if self._with_head else self.network(images)


def scaled(images_NCHW: torch.Tensor, run: Trained) -> torch.Tensor:
    """The rule of `segexp.data.normalise.ruled`, as operations that a graph can hold, then mean and deviation."""
    return run.normalise(_ruled(images_NCHW.double(), run.rule).float() if run.rule.name != "train" else images_NCHW)


def _ruled(exact: torch.Tensor, rule: Rule) -> torch.Tensor:
    if rule.name == "ct":
        return ((exact - rule.low) / (rule.high - rule.low)).clamp(0, 1)
    if rule.name == "image":
        low, width = exact.mean((2, 3), keepdim=True), exact.std((2, 3), correction=0, keepdim=True)
        return (exact - low) / width.where(width > 1e-12, 1.0)
    low, high = exact.flatten(2).quantile(exact.new_tensor(PERCENTILES) / 100, dim=2)[..., None, None]
    return ((exact - low) / (high - low).where(high - low > 1e-12, 1.0)).clamp(0, 1)


def export(run_dir: Path, form: str, with_head: bool, out: Path | None = None) -> Exported:
    """Write the selected network of a finished run. form: onnx, pt2, safetensors or smp; out: None for the run's name.

    Raises UsageError where the format cannot hold the network, and DifferentError."""
    record = read_run(run_dir)
    config = recorded_config(run_dir, ["trainer.device=cpu"])
    if with_head and form in ("safetensors", "smp"):
        raise UsageError(f"--format {form} holds weights only: leave out --with-head, or use --format onnx or pt2")
    if form == "smp" and (reason := not_smp(config)):
        raise UsageError(f"--format smp: {reason}; use --format onnx, pt2 or safetensors")
    run = trained(run_dir, config, record, "cpu")
    path = out or Path(run_dir.absolute().name + ("-smp" if form == "smp" else f".{form}"))
    if form != "smp" and path.is_dir():
        raise UsageError(f"{path} is a directory: give a file, such as -o {path / f'network.{form}'}")
    facts = facts_of(config, record)
    values = "values" if OUTPUT_ACTIVATIONS[config.activation.name].log_odds is None else "probabilities"
    facts |= {"input": _input(facts, run, with_head), "output": values if with_head else "logits"}
    images, checked_on = own_images(run_dir, config, run, facts)
    with placed(path) as made, torch.no_grad(), warnings.catch_warnings(), ExitStack() as after:
        # The exporters report their progress and use what torch deprecates.
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        after.callback(logging.disable, logging.NOTSET)
        if form in ("safetensors", "smp"):
            facts["sizes"] = "sizes as the architecture takes them"
            read = _write_weights(made, form, run.network, facts, untrained(config, run.channels, record))
        else:
            read = _write_graph(made, form, Deployed(run, with_head), facts, run.channels)
        if facts["sizes"].startswith("any batch; sides"):  # at a size that no image of the data set need have
            images = [*images, F.pad(images[0], (0, 0, 0, facts["divisor"]), mode="replicate")]
        own, differences = ProbabilityModel(run, config), []
        for image in images:
            found = read(image) if with_head else run.head(read(scaled(image, run))).values_NKHW
            differences.append(float((found - own(image)).abs().max()))
        largest = math.nan if any(map(math.isnan, differences)) else max(differences)
        if not largest <= TOLERANCE:
            wrong = f"its probabilities differ from the run's by up to {largest:.2g} on {checked_on}"
            raise DifferentError(f"{path} is not written: {wrong}, more than {TOLERANCE:g}")
    summary = f"{path}: {facts['output']}; {facts['sizes']}", f"largest difference of a probability {largest:.2g}"
    return Exported(path, largest, (summary[0], f"checked on {checked_on}: {summary[1]}"))


def _input(facts: Mapping[str, Any], run: Trained, with_head: bool) -> str:
    """What the exported network takes, for its metadata."""
    stored = run.stored or run.rule.name != "train"
    values = "stored values of the image" if stored else "image in [0, 1] (8 bit / 255, 16 bit / 65535)"
    if not with_head:
        rule = "" if run.rule.name == "train" else f" under dataset.normalise={facts['dataset.normalise']}"
        values = f"(x - mean) / std per channel, x the {values}{rule}"
    return f"float32 (N, {run.channels}, H, W), {values}, at the scale of the training images"


def not_smp(config: Config) -> str:
    """The reason why `smp.from_pretrained` would not give the same logits; "" where it does."""
    hidden = config.hidden_activation.name
    if ARCHITECTURES[config.model.name].own:
        return f"smp does not know the architecture {config.model.name}"
    return "" if hidden == "native" else f"smp.from_pretrained would build ReLU in place of {hidden}, without a warning"


# The images of the check


def own_images(run_dir: Path, config: Config, run: Trained, facts: Mapping[str, Any]) -> tuple[list[torch.Tensor], str]:
    """Images (1, C, H, W) and what they are: float32 in [0, 1], or stored values where the run was trained on them.

    Test images of the run where its data can be read, else the pictures that it kept, else random numbers.
    """
    with suppress(UsageError, OSError):
        image_set = opened(config)[1]
        test = {row["image_id"] for row in text_rows(run_dir / "split.csv", "split") if row["split"] == "test"}
        chosen = fixed_choice(image_set.image_ids, [i for i, name in enumerate(image_set.image_ids) if name in test])
        if chosen:
            images = [_fitted(image_set.read(i).image_HWC, run, facts) for i in chosen]
            return images, f"{pluralize(len(images), 'test image')} of the run"
    pictures = [p for p in sorted((run_dir / "examples").glob("*.png")) if not p.stem.endswith("_reference")]
    kept = [np.atleast_3d(np.asarray(Image.open(p))) for p in pictures]
    if kept and not run.stored and all(one.shape[2] == run.channels for one in kept):
        lost = "the run's data cannot be read"
        return [_fitted(one, run, facts) for one in kept], f"{pluralize(len(kept), 'picture')} in the run ({lost})"
    shape, random = (run.channels, facts["input_size"], facts["input_size"]), torch.Generator().manual_seed(0)
    return [torch.rand(1, *shape, generator=random) for _ in range(4)], "random images (the run's data cannot be read)"


def _fitted(image_HWC: np.ndarray, run: Trained, facts: Mapping[str, Any]) -> torch.Tensor:
    """The image in float32, resized for ``fit=resize``, else cropped and padded to the divisor."""
    image = torch.from_numpy(np.array(image_HWC)).permute(2, 0, 1)[None]
    depth = {torch.uint8: 255, torch.uint16: 65535}.get(image.dtype, 1)
    image = image.float() / (1 if run.stored or run.rule.name != "train" else depth)
    if facts["dataset.fit"] == "resize":
        return F.interpolate(image, (facts["input_size"],) * 2, mode="bilinear", antialias=True)
    image = image[:, :, :CROP, :CROP]
    below, right = (-side % facts["divisor"] for side in image.shape[2:])
    return F.pad(image, (0, right, 0, below), mode="replicate")


# Files: each is written and read back


def _write_weights(
    path: Path, form: str, trained: torch.nn.Module, facts: dict[str, Any], blank: torch.nn.Module
) -> Function:
    """safetensors, or the folder of `smp.from_pretrained`. blank: the run's network with other weights."""
    network = copy.deepcopy(trained)
    if form == "smp" and hasattr(network, "output_options"):  # no part of smp's network: the metadata hold the values
        del network.output_options
    weights = {name: tensor.clone().contiguous() for name, tensor in network.state_dict().items()}
    if form == "safetensors":
        path.write_bytes(save(weights, {METADATA: json.dumps(facts)}))  # several keys would have no fixed order
        blank.load_state_dict(load(path.read_bytes()))
        return blank.eval()
    import segmentation_models_pytorch as smp

    path.mkdir()
    config: Any = network.config
    (path / "model.safetensors").write_bytes(save(weights, {"format": "pt"}))
    (path / "config.json").write_text(json.dumps({**config, "_model_class": type(network).__name__}, indent=1) + "\n")
    (path / METADATA).write_text(json.dumps(facts, indent=1) + "\n")
    with redirect_stdout(io.StringIO()):  # the hub client reports that it reads a folder
        again: torch.nn.Module = smp.from_pretrained(path)
    return again.eval()


def _write_graph(path: Path, form: str, network: torch.nn.Module, facts: dict[str, Any], channels: int) -> Function:
    """onnx or pt2, with as many dynamic sizes as the architecture allows, noted in facts. Raises UsageError."""
    size, divisor = facts["input_size"], facts["divisor"]
    batch, height, width = (torch.export.Dim(name) for name in ("batch", "height", "width"))
    sides = f"any batch; sides in multiples of {divisor} px"
    fixed = f"fixed at {size} x {size} px, because torch.export finds no dynamic sides in this network"
    attempts: list[tuple[tuple[int, int, int], dict[int, Any], str]] = [
        # Sides that differ, so that nothing is traced as equal.
        ((2, size, size + divisor), {0: batch, 2: divisor * height, 3: divisor * width}, sides),
        ((2, size, size), {0: batch}, f"any batch; {fixed}"),
        ((1, size, size), {}, f"one image at a time; {fixed}"),
    ]
    for (n, h, w), dynamic, words in attempts:
        try:
            args = (torch.zeros(n, channels, h, w),)
            program = torch.export.export(network, args, dynamic_shapes=(dynamic,), strict=False)
        except Exception as error:
            failure = first_line(error)
            continue
        facts["sizes"] = words
        if form == "onnx":
            return _write_onnx(path, program, facts)
        torch.export.save(program, path, extra_files={METADATA: json.dumps(facts, indent=1)})
        return torch.export.load(path).module()
    raise UsageError(f"torch.export cannot trace this network ({failure}): use --format safetensors")


def _write_onnx(path: Path, program: torch.export.ExportedProgram, facts: Mapping[str, Any]) -> Function:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError:
        raise UsageError("--format onnx needs ONNX: pip install 'segexp[onnx]', or use --format pt2") from None
    try:
        program = program.run_decompositions({torch.ops.aten.special_erfcx.default: erfcx})
        named: Any = {"input_names": ["images"], "output_names": [facts["output"]]}
        made: Any = torch.onnx.export(program, dynamo=True, verbose=False, **named)
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
        made.model.metadata_props.update(texts)
        made.save(path, external_data=False)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UsageError(f"ONNX cannot express this network ({first_line(error)[:200]}): use --format pt2") from error
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


ERFCX = (
    *(-0.671794076, 0.672642217, 0.0473431063, -0.0468748882, -0.00987376875),
    *(0.00870381204, 0.00177656463, -0.00204873476, -0.000207909121, 0.000333735894),
)
"""ln(erfcx(x) / t) for x >= 0 as a polynomial in 2 t - 1, t = 1 / (1 + x / 2): our fit, within 4e-7."""


def erfcx(x: torch.Tensor) -> torch.Tensor:
    """e^(x^2) erfc(x) for ONNX, which has only that product: infinity times 0 from x = 9.3 on."""
    t = 1 / (1 + x.abs() / 2)
    right = t * functools.reduce(lambda power, c: power * (2 * t - 1) + c, reversed(ERFCX), torch.zeros_like(t)).exp()
    return torch.where(x < 0, 2 * (x * x).exp() - right, right)
