"""A finished run's network as a file for other software, read back and compared with the run.

onnx: ONNX Runtime; pt2: `torch.export.load`; safetensors: weights; smp: a folder for `smp.from_pretrained`.
"""

import functools
import inspect
import io
import json
import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load, save

from segexp.activations.output import OUTPUT_ACTIVATIONS
from segexp.config import Config, params
from segexp.config.compose import recorded_config
from segexp.data.batches import InputGeometry, Normalisation, sample_of, scoring_batches
from segexp.data.image_set import Pair
from segexp.data.normalise import AS_STORED, Rule, in_words
from segexp.errors import UsageError, first_line
from segexp.evaluation.pictures import fixed_choice
from segexp.inference.published import DifferentError, placed, settings_of
from segexp.models.architectures import ARCHITECTURES, min_size
from segexp.records import flatten, read_run, text_rows
from segexp.records.scores import class_label
from segexp.running import opened
from segexp.running.build import Trained, trained, untrained

TOLERANCE = 1e-4
"""The largest difference of a probability with which a file is the run's network (float32)."""

METADATA = "segexp.json"
"""The facts as JSON: in a pt2 archive, the header of safetensors, the folder of smp. onnx has a property for each."""

Function = Callable[[torch.Tensor], torch.Tensor]  # images_NCHW -> the output of the written file


class Deployed(torch.nn.Module):
    """The exported network: normalised images_NCHW -> logits_NKHW, or with its head the images of `input_of` ->
    probabilities_NKHW."""

    def __init__(self, run: Trained, with_head: bool) -> None:
        super().__init__()
        self.network, self._run, self._with_head = run.network, run, with_head
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        run = self._run
        return run.head(self.network(as_input(images, run))).values_NKHW if self._with_head else self.network(images)


def as_input(images_NCHW: torch.Tensor, run: Trained) -> torch.Tensor:
    """Images as the file with its head takes them -> the network's input. The rules image and percentile measure each
    image at its own size, which a graph is not given: its user applies them, see `input_of`."""
    if run.rule.name != "ct":
        return run.normalise(images_NCHW)
    low, high = run.rule.low, run.rule.high
    return run.normalise(((images_NCHW.double() - low) / (high - low)).clamp(0, 1).float())


def facts_of(config: Config, record: Mapping[str, Any]) -> dict[str, Any]:
    """What a user of a finished run's network must know: its published settings, and plain values.

    normalisation: mean and std per channel after ``dataset.normalise``; stored: of stored values, else of values in
    [0, 1]. threshold_tuned: a probability, or a value of `identity`; None under softmax. learned: options of the head.
    """
    augment = {key: value for key, value in record["config"].items() if key.startswith("augment.")}
    # `recorded_config` leaves the augmentation out, and gives options that are newer than the run.
    flat, tuned = flatten(config) | augment, record["summary"].get("threshold_tuned")
    if tuned is not None:  # recorded as evidence
        tuned = tuned + 0.5 if config.activation.name == "identity" else 0.5 + 0.5 * math.tanh(tuned / 2)
    return {
        "segexp": record["versions"]["segexp"],
        "run_id": record["run_id"],
        "identity": record["identity"],
        **settings_of(flat),
        "classes": [class_label(flat, c) for c in range(config.dataset.num_classes)],
        "normalisation": {"stored": False, **record["normalisation"]},
        "input_size": record.get("input_size") or config.dataset.image_size,
        "divisor": ARCHITECTURES[config.model.name].divisor.of(params(config.model)),
        "threshold": 0.5,
        "threshold_tuned": tuned,
        "plugins": [Path(plugin["given"]).name for plugin in (record.get("plugins") or {}).values()],
        "learned": (record.get("head") or {}).get("learned") or {},
    }


def export(run_dir: Path, form: str, with_head: bool, path: Path) -> dict[str, Any]:
    """Write the selected network of a finished run to ``path``, and compare it with the run. form: onnx, pt2,
    safetensors or smp.

    Returns the facts in the file, with ``difference``, the largest of a probability on the images ``checked_on``.
    Raises UsageError where the format cannot hold the network, and DifferentError.
    """
    record, config = read_run(run_dir), recorded_config(run_dir, ["trainer.device=cpu"])
    if form != "smp" and path.is_dir():
        raise UsageError(f"{path} is a directory: give a file, such as -o {path / 'network'}.{form}")
    hidden, foreign = config.hidden_activation.name, ARCHITECTURES[config.model.name].own
    if with_head and form in ("safetensors", "smp"):
        raise UsageError(f"--format {form} holds weights only: leave out --with-head, or use --format onnx or pt2")
    if form == "smp" and (foreign or hidden != "native"):
        lost = (
            f"does not know model={config.model.name}"
            if foreign
            else f"would build ReLU in place of {hidden}, silently"
        )
        raise UsageError(f"--format smp: smp.from_pretrained {lost}; use --format onnx, pt2 or safetensors")
    run, facts = trained(run_dir, config, record, "cpu"), facts_of(config, record)
    run.network.to(memory_format=torch.contiguous_format)  # the order in which files hold weights
    plain = OUTPUT_ACTIVATIONS[config.activation.name].log_odds is None
    size, architecture = facts["input_size"], ARCHITECTURES[config.model.name]
    least = min_size(architecture, params(config.model), config.backbone.name)
    least = -(-least // facts["divisor"]) * facts["divisor"]
    facts["input"] = input_of(run, config, size, with_head)
    facts["output"] = ("values" if plain else "probabilities") if with_head else "logits"
    (images, checked_on), largest = own_images(run_dir, config, run, size), 0.0
    with placed(path) as made, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters use what torch deprecates
        # As `segexp predict` computes them. Before tracing, as plugins measure F in their first call.
        inputs = [run.normalise(fitted(image_HWC, run.rule, config, size)) for image_HWC in images]
        expected = [run.head(run.network(image)).values_NKHW for image in inputs]
        if form in ("safetensors", "smp"):
            facts["sizes"] = sides_of(facts["divisor"], least)
            read = _write_weights(made, form, run.network, facts, untrained(config, run.channels, record))
        else:
            read = _write_graph(made, form, Deployed(run, with_head), facts, run.channels, least)
        for image_HWC, of_run in zip(images, expected, strict=True):
            out = read(given(image_HWC, run, config, size, with_head))
            found = out if with_head else run.head(out).values_NKHW
            difference = float((found - of_run).abs().max())
            largest = max(largest, math.inf if math.isnan(difference) else difference)
        if largest > TOLERANCE:
            wrong = f"its probabilities differ from the run's by up to {largest:.2g} on {checked_on}"
            raise DifferentError(f"{path} is not written: {wrong}, more than {TOLERANCE:g}")
    return facts | {"difference": largest, "checked_on": checked_on}


def input_of(run: Trained, config: Config, size: int, with_head: bool) -> str:
    """What must be done with an image before it is given to a written file."""
    shares = not run.stored and run.rule == AS_STORED
    values = "values in [0, 1] (8 bit / 255, 16 bit / 65535)" if shares else "stored values"
    if run.rule.name == "ct" and with_head:
        values += f", cut to {run.rule.low:.9g} to {run.rule.high:.9g} before any resizing"
    elif run.rule != AS_STORED:
        at = "each channel of each image, before any resizing or padding"
        values += f", scaled by dataset.normalise={config.dataset.normalise} ({at}: {in_words(run.rule)})"
    fit = "objects at the scale of the training images, padded at the right and bottom with edge values"
    if config.dataset.fit == "resize":
        fit = f"resized to {size} x {size} px (bilinear, antialiased)"
    standard = "" if with_head else "; then (x - mean) / std per channel"
    return f"float32 (N, {run.channels}, H, W), {values}; {fit}{standard}"


def given(image_HWC: np.ndarray, run: Trained, config: Config, size: int, with_head: bool) -> torch.Tensor:
    """(1, C, size, size): an image at its own size, prepared as `input_of` says."""
    if run.rule.name == "ct" and with_head:
        return fitted(image_HWC.astype(np.float32).clip(run.rule.low, run.rule.high), AS_STORED, config, size)
    image_NCHW = fitted(image_HWC, run.rule, config, size)
    return image_NCHW if with_head else run.normalise(image_NCHW)


def fitted(image_HWC: np.ndarray, rule: Rule, config: Config, size: int) -> torch.Tensor:
    """(1, C, size, size): an image at its own size, scaled by the rule and then resized or padded as for a score."""
    fit, sizes_12 = InputGeometry(config.dataset.fit, size, size, rule), np.array([image_HWC.shape[:2]])
    sample = sample_of(Pair(image_HWC, np.zeros(image_HWC.shape[:2], np.uint8)), fit)
    unchanged = Normalisation((0.0,) * image_HWC.shape[2], (1.0,) * image_HWC.shape[2])
    (batch,) = scoring_batches(lambda _: sample, fit, unchanged, [0], sizes_12, 1)
    return batch.images_NCHW


def own_images(run_dir: Path, config: Config, run: Trained, size: int) -> tuple[list[np.ndarray], str]:
    """Images (H, W, C) at their own size, with ``fit=pad`` at most size x size of each, and what they are.

    Test images of the run where its data can be read, else the pictures that it kept, else random numbers.
    """
    lost = "because the run's data cannot be read"
    found = [np.random.default_rng(n).integers(0, 256, (size, size, run.channels), np.uint8) for n in range(4)]
    what = f"random images, {lost}"
    pictures = [p for p in sorted((run_dir / "examples").glob("*.png")) if not p.stem.endswith("_reference")]
    mode = {1: "L", 3: "RGB"}.get(run.channels)  # the pictures of grey images have colours
    if kept := [np.atleast_3d(np.array(Image.open(p).convert(mode))) for p in pictures if mode]:
        found, what = kept, f"the {len(kept)} pictures in the run, {lost}"
    with suppress(UsageError, OSError):
        image_set = opened(config)[1]
        test = {row["image_id"] for row in text_rows(run_dir / "split.csv", "split") if row["split"] == "test"}
        chosen = fixed_choice(image_set.image_ids, [i for i, name in enumerate(image_set.image_ids) if name in test])
        read = [image_set.read(i).image_HWC for i in chosen]
        found, what = (read, f"{len(read)} test images of the run") if read else (found, what)
    if config.dataset.fit == "pad":
        found = [image_HWC[:size, :size] for image_HWC in found]
    return [image_HWC.astype(np.float32) if run.stored else image_HWC for image_HWC in found], what


def sides_of(divisor: int, least: int) -> str:
    """Which sides of an image a network takes, in pixels."""
    return f"sides in multiples of {divisor} px" + (f" from {least} px" if least > divisor else "")


def _write_weights(
    path: Path, form: str, network: torch.nn.Module, facts: dict[str, Any], blank: torch.nn.Module
) -> Function:
    """safetensors, or the folder of `smp.from_pretrained`; returns what was read back. blank: the untrained network."""
    # Learned options of the head are no part of smp's network: the facts hold their values.
    kept = {k: v for k, v in network.state_dict().items() if form != "smp" or not k.startswith("output_options.")}
    weights = {name: tensor.clone().contiguous() for name, tensor in kept.items()}
    if form == "safetensors":
        path.write_bytes(save(weights, {METADATA: json.dumps(facts)}))  # several keys would have no fixed order
        blank.load_state_dict(load(path.read_bytes()))
        return blank.eval()
    import segmentation_models_pytorch as smp

    path.mkdir()
    config: Any = network.config
    (path / "model.safetensors").write_bytes(save(weights, {"format": "pt"}))
    (path / "config.json").write_text(json.dumps({**config, "_model_class": type(network).__name__}, indent=1))
    (path / METADATA).write_text(json.dumps(facts, indent=1))
    with redirect_stdout(io.StringIO()):  # the hub client reports that it reads a folder
        again: torch.nn.Module = smp.from_pretrained(path)
    return again.eval()


def _write_graph(
    path: Path, form: str, network: torch.nn.Module, facts: dict[str, Any], channels: int, least: int
) -> Function:
    """onnx or pt2, with as many dynamic sizes as the network allows, noted in facts; returns what was read back.

    least: the smallest side of the network's images."""
    if form == "onnx" and "dynamic_shapes" not in inspect.signature(torch.onnx.export).parameters:
        raise UsageError(f"--format onnx needs a newer torch than {torch.__version__}: use --format pt2")
    size, divisor = facts["input_size"], facts["divisor"]
    batch, height, width = (torch.export.Dim(name) for name in ("batch", "height", "width"))
    fixed = f"fixed at {size} x {size} px, because this network has no dynamic sides in {form}"
    # Sides that differ from each other and from the run's, so that nothing is traced as equal.
    sides: Any = ((2, size + divisor, size + 2 * divisor), {0: batch, 2: divisor * height, 3: divisor * width})
    attempts: list[tuple[tuple[int, int, int], dict[int, Any], str, int]] = [
        (*sides, f"any batch; {sides_of(divisor, least)}", least),
        (*sides, f"any batch; {sides_of(divisor, least + divisor)}", least + divisor),
        ((2, size, size), {0: batch}, f"any batch; {fixed}", size),
        ((1, size, size), {}, f"one image at a time; {fixed}", size),
    ]
    for (n, h, w), dynamic, words, smallest in attempts:
        facts["sizes"] = words
        try:
            images = (torch.zeros(n, channels, h, w),)
            with _from_one_pixel() if words == attempts[0][2] else nullcontext():
                program = torch.export.export(network, images, dynamic_shapes=(dynamic,), strict=False)
            for module in program.graph_module.modules():
                for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
                    node.meta.pop("stack_trace", None)  # paths of this machine
            read = (_write_onnx if form == "onnx" else _write_pt2)(path, program, facts)
            for side in {smallest, size}:  # a graph may hold a size that the trace did not see
                read(torch.zeros(1, channels, side, side))
        except ImportError:
            raise UsageError("--format onnx needs ONNX: pip install 'segexp[onnx]', or use --format pt2") from None
        except OSError:
            raise
        except Exception as error:
            cause: BaseException = error
            while inner := cause.__cause__ or cause.__context__:  # torch.onnx wraps it in advice
                cause = inner
            failure = first_line(cause)[:200]
        else:
            return read
    raise UsageError(
        f"{form} cannot hold this network ({failure}): use --format {'pt2' * (form == 'onnx') or 'safetensors'}"
    )


def _from_one_pixel() -> AbstractContextManager[Any]:
    """Within it torch.export, where torch has the option, no longer assumes more than one pixel a side everywhere: the
    deepest features of an image of one divisor have one."""
    from torch.fx.experimental import _config

    options: Any = _config
    return options.patch(backed_size_oblivious=True) if hasattr(options, "backed_size_oblivious") else nullcontext()


def _write_pt2(path: Path, program: torch.export.ExportedProgram, facts: Mapping[str, Any]) -> Function:
    content = io.BytesIO()  # a file that torch cannot write would end the process
    torch.export.save(program, content, extra_files={METADATA: json.dumps(facts)})
    path.write_bytes(content.getvalue())
    return torch.export.load(path).module()


def _write_onnx(path: Path, program: torch.export.ExportedProgram, facts: Mapping[str, Any]) -> Function:
    import onnxruntime

    aten = torch.ops.aten
    exact = {aten.special_erfcx.default: erfcx, aten.erfc.default: erfc, aten.expm1.default: expm1}
    program = program.run_decompositions(exact | {aten.log1p.default: log1p})
    named: Any = {"input_names": ["images"], "output_names": [facts["output"]]}
    made: Any = torch.onnx.export(program, dynamo=True, verbose=False, **named)
    made.model.metadata_props.update({k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()})
    for node in made.model.graph:
        node.metadata_props.clear()  # paths and numbers of this process
    made.save(path, external_data=False)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised as well
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
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


def erfc(x: torch.Tensor) -> torch.Tensor:
    """1 - erf(x) for ONNX, which computes that difference: it would be 0 from x = 4 on."""
    tail = erfcx(x.abs()) * (-x * x).exp()
    return torch.where(x < 0, 2 - tail, tail)


def expm1(x: torch.Tensor) -> torch.Tensor:
    """e^x - 1 for ONNX, which computes that difference: it would be 0 next to 0, and its logarithm infinite."""
    t = (x.clamp(-1, 1) / 2).tanh()
    return torch.where(x.abs() < 1, 2 * t / (1 - t), x.exp() - 1)


def log1p(x: torch.Tensor) -> torch.Tensor:
    """ln(1 + x) for ONNX, corrected for the rounding of 1 + x (Kahan)."""
    w = 1 + x
    return torch.where(w == 1, x, w.log() * (x / torch.where(w == 1, 1.0, w - 1)))
