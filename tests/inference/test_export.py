"""`segexp export`: what comes out of a written file is what the run's own network computes."""

import json
import warnings
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load
from tiny import TINY, tiny_run, write_pairs

import segexp
from segexp import cli
from segexp.activations.head import make_head
from segexp.activations.hidden import function_names, make_hidden
from segexp.activations.output import OUTPUT_ACTIVATIONS
from segexp.errors import UsageError
from segexp.inference import export as module
from segexp.inference.export import METADATA, export
from segexp.records import read_run

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ("activation=normal_cdf", "loss=bce", "trainer.epochs=1")
    return Path(tiny_run(tmp_path_factory.mktemp("outputs"), *words).run_dir)


def metadata_of(path: Path) -> dict[str, Any]:
    if path.suffix == ".pt2":
        extra = {METADATA: ""}
        torch.export.load(path, extra_files=extra)
        return dict(json.loads(extra[METADATA]))
    import onnx

    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def session_of(path: Path) -> Any:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def test_safetensors_hold_the_weights_and_all_facts(run_dir: Path, tmp_path: Path, capsys: Captured):
    path = tmp_path / "network.safetensors"
    assert cli.main(["export", str(run_dir), "--format", "safetensors", "-o", str(path)]) == 0
    with safe_open(path, "pt") as file:
        facts, names = json.loads(file.metadata()[METADATA]), set(file.keys())
    assert names == set(segexp.load(run_dir).network.state_dict())  # type: ignore[union-attr]
    normalisation = json.loads((run_dir / "run.json").read_text())["normalisation"]
    assert facts["normalisation"]["mean"] == normalisation["mean"]
    assert 0 < facts["threshold_tuned"] < 1
    recorded = {k: v for k, v in read_run(run_dir)["config"].items() if k.startswith("augment.")}
    assert recorded["augment.name"] != "none"
    assert {key: facts[key] for key in recorded} == recorded
    before = path.read_bytes()
    # The same again changes nothing; another file of this name stays.
    assert cli.main(["export", str(run_dir), "--format", "safetensors", "-o", str(path)]) == 0
    path.write_bytes(before + b" ")
    capsys.readouterr()
    assert cli.main(["export", str(run_dir), "--format", "safetensors", "-o", str(path)]) == 2
    assert "-o" in capsys.readouterr().err
    assert path.read_bytes() == before + b" "
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_smp_reads_the_folder_back_with_the_same_logits(run_dir: Path, tmp_path: Path):
    import segmentation_models_pytorch as smp

    folder = tmp_path / "folder"
    assert export(run_dir, "smp", False, folder)["difference"] == 0
    images = torch.rand(2, 1, 32, 40)
    again: torch.nn.Module = smp.from_pretrained(folder)
    assert torch.equal(again.eval()(images), segexp.load(run_dir).network(images))  # type: ignore[operator]
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", METADATA]


def test_a_file_that_computes_something_else_is_not_kept(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
):
    monkeypatch.setattr(module, "load", lambda data: {k: v + 0.1 for k, v in load(data).items()})
    words = ["export", str(run_dir), "--format", "safetensors", "-o", str(tmp_path / "a.safetensors")]
    assert cli.main(words) == 1
    assert not list(tmp_path.iterdir())
    assert "not written" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "cure"), [
    (["--format", "torchscript"], "safetensors"),
    (["--format", "smp", "--with-head"], "leave out --with-head"),
    (["--format", "pt2", "-o", "."], "-o network.pt2"),
])  # fmt: skip
def test_what_cannot_be_written_is_refused_in_one_line(run_dir: Path, words: list[str], cure: str, capsys: Captured):
    assert cli.main(["export", str(run_dir), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert cure in line


@pytest.mark.parametrize("name", ["erfcx", "erfc", "expm1", "log1p"])
def test_functions_that_onnx_lacks_are_those_of_torch(name: str):
    small = torch.logspace(-30, -1, 200)
    x = torch.cat([torch.linspace(-0.9, 3, 999), small, -small, torch.logspace(0.1, 1.9, 99)])
    x = x[x < 5] if name == "erfc" else x
    expected = getattr(torch.special, name)(x.double())
    relative = ((getattr(module, name)(x) - expected) / expected)[x != 0].abs()
    assert float(relative.max()) < 3e-6


# Slow: graphs, every activation, rules of normalisation, lost data


@pytest.mark.slow
def test_pt2_with_its_head_takes_images_of_any_batch_and_size_as_load_does(run_dir: Path, tmp_path: Path):
    path = tmp_path / "network.pt2"
    done = export(run_dir, "pt2", True, path)
    assert done["difference"] < 1e-6
    assert "test images of the run" in done["checked_on"]
    facts, own = metadata_of(path), segexp.load(run_dir)
    assert facts["sizes"] == "any batch; sides in multiples of 8 px"
    for height, width in ((40, 24), (8, 24), (24, 8), (8, 8)):  # also of one divisor
        images = torch.rand(3, 1, height, width)
        assert torch.equal(torch.export.load(path).module()(images), own(images))
    assert (facts["output"], facts["divisor"], facts["activation.name"]) == ("probabilities", 8, "normal_cdf")
    assert facts["identity"] == json.loads((run_dir / "run.json").read_text())["identity"]
    assert str(run_dir.parent) not in json.dumps(facts)
    assert b"site-packages" not in path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("with_head", [False, True])
def test_onnx_gives_the_probabilities_of_the_run(run_dir: Path, tmp_path: Path, with_head: bool):
    pytest.importorskip("onnxscript")
    path, other = tmp_path / "network.onnx", tmp_path / "other" / "network.onnx"
    export(run_dir, "onnx", with_head, path)
    facts, images = metadata_of(path), torch.rand(3, 1, 48, 24)
    assert facts["output"] == ("probabilities" if with_head else "logits")
    own = segexp.load(run_dir)
    expected = own(images) if with_head else own.network(images)  # type: ignore[operator]
    torch.testing.assert_close(session_of(path)(images), expected.detach(), atol=1e-5, rtol=1e-4)
    export(run_dir, "onnx", with_head, other)
    assert other.read_bytes() == path.read_bytes()
    assert b"site-packages" not in path.read_bytes()


def test_without_its_data_the_pictures_of_a_run_are_compared(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def gone(config: object) -> None:
        raise UsageError("no data")

    monkeypatch.setattr("segexp.inference.export.opened", gone)
    assert "pictures in the run" in export(run_dir, "safetensors", False, tmp_path / "a.safetensors")["checked_on"]


class Values(torch.nn.Module):
    """An output activation, of logits up to some tens."""

    def __init__(self, name: str, mode: Any) -> None:
        super().__init__()
        self.head = make_head(OUTPUT_ACTIVATIONS[name], mode)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.head(30 * x_NCHW).values_NKHW


class Beside(torch.nn.Module):
    """A convolution, of which each part gets three channels: one graph, which is sooner written than one for each."""

    def __init__(self, parts: Iterable[torch.nn.Module]) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleList(parts)
        self.layer = torch.nn.Conv2d(1, 3 * len(self.parts), 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        given = self.layer(images).split(3, 1)
        return torch.cat([part(x_NCHW) for part, x_NCHW in zip(self.parts, given, strict=True)], 1)


def round_trip(parts: dict[str, torch.nn.Module], form: str, folder: Path) -> dict[str, float]:
    """Part -> the largest difference to its exported graph, at another size than it was traced with."""
    torch.manual_seed(0)
    network = Beside(parts.values()).eval()
    facts = {"input_size": 16, "divisor": 8, "output": "probabilities"}
    read = module._write_graph(folder / f"network.{form}", form, network, facts, 1, 8)
    assert facts["sizes"] == "any batch; sides in multiples of 8 px"
    images = 4 * torch.rand(3, 1, 24, 40, generator=torch.Generator().manual_seed(1)) - 2
    with torch.no_grad():
        apart = (read(images) - network(images)).abs().amax((0, 2, 3)).view(-1, 3).amax(1)
    return dict(zip(parts, apart.tolist(), strict=True))


NOT_IN_ONNX = "rrelu"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["onnx", "pt2"])
@pytest.mark.parametrize("sixth", range(6))
def test_every_activation_is_exported(sixth: int, form: str, tmp_path: Path):
    """Some at once: the time to write a graph grows faster than the graph."""
    pytest.importorskip("onnxscript")
    parts = {name: make_hidden(name, {}, 3, 1) for name in function_names() if form == "pt2" or name != NOT_IN_ONNX}
    for name, entry in OUTPUT_ACTIVATIONS.items():
        modes = [mode for mode in ("independent", "softmax") if mode in entry.modes]
        parts |= {f"{name} {mode}": Values(name, mode) for mode in modes}
    apart = round_trip(dict([*parts.items()][sixth::6]), form, tmp_path)
    assert {name: difference for name, difference in apart.items() if not difference < 1e-4} == {}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_onnx_has_not_is_refused(tmp_path: Path):
    pytest.importorskip("onnxscript")
    with pytest.raises(UsageError, match="--format pt2"):
        round_trip({NOT_IN_ONNX: make_hidden(NOT_IN_ONNX, {}, 3, 1)}, "onnx", tmp_path)


def photographs(root: Path) -> None:
    rng = np.random.default_rng(0)
    disc = (np.hypot(*np.mgrid[-20:20, -16:24]) < 12).astype(np.uint8)
    write_pairs(root, [(f"{n}.png", 40 + 60 * disc + rng.integers(0, 99, disc.shape), 255 * disc) for n in range(16)])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_network_whose_onnx_graph_would_hold_a_size_is_fixed_to_one_and_says_so(tmp_path: Path):
    pytest.importorskip("onnxscript")
    words = ["model=pspnet", "backbone=resnet18", "dataset.image_size=32", "model.encoder_depth=3"]
    network, facts = segexp.build_model(words).eval(), {"input_size": 32, "divisor": 8, "output": "logits"}
    with torch.no_grad():
        read = module._write_graph(tmp_path / "network.onnx", "onnx", network, facts, 1, 8)
        images = torch.rand(2, 1, 32, 32)
        torch.testing.assert_close(read(images), network(images), atol=1e-4, rtol=1e-4)
    assert str(facts["sizes"]).startswith("any batch; fixed at 32 x 32 px")


@pytest.mark.slow
def test_a_network_with_a_larger_smallest_image_says_so(tmp_path: Path):
    """Nothing is claimed of sizes that the file refuses: without a network's smallest size, and with one."""

    class Halved(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            torch._check(images.shape[2] > 8)
            return 2 * images

    facts = {"input_size": 32, "divisor": 8, "output": "logits"}
    module._write_graph(tmp_path / "a.pt2", "pt2", Halved(), facts, 1, 8)
    assert facts["sizes"] == "any batch; sides in multiples of 8 px from 16 px"
    module._write_graph(tmp_path / "b.pt2", "pt2", Halved(), facts, 1, 24)
    assert facts["sizes"] == "any batch; sides in multiples of 8 px from 24 px"


def by_hand(stored_HWC: np.ndarray, rule: str, size: tuple[int, int], fit: str) -> torch.Tensor:
    """(1, C, H, W): what the metadata ask of the user, in NumPy and Pillow."""
    if rule == "image":
        scaled_HWC = (stored_HWC - stored_HWC.mean((0, 1))) / stored_HWC.std((0, 1))
    elif rule == "percentile":
        low, high = np.percentile(stored_HWC, [1, 99], axis=(0, 1))
        scaled_HWC = ((stored_HWC - low) / (high - low)).clip(0, 1)
    else:
        scaled_HWC = stored_HWC.clip(50, 120)
    if fit == "pad":
        below, right = (side - n for side, n in zip(size, stored_HWC.shape, strict=False))
        scaled_HWC = np.pad(scaled_HWC, ((0, below), (0, right), (0, 0)), "edge")
    channels = [Image.fromarray(channel_HW.astype(np.float32)) for channel_HW in scaled_HWC.transpose(2, 0, 1)]
    resized = [np.asarray(channel.resize(size[::-1], Image.Resampling.BILINEAR)) for channel in channels]
    return torch.from_numpy(np.stack(resized)[None])


@pytest.mark.slow
@pytest.mark.parametrize("fit", ["pad", "resize"])
@pytest.mark.parametrize("rule", ["image", "percentile", "ct(50,120)"])
def test_rules_act_at_an_images_own_size_in_load_and_before_a_file_is_used(rule: str, fit: str, tmp_path: Path):
    photographs(tmp_path / "data")
    words = [word for word in TINY if not word.startswith(("dataset.number", "dataset.image_size"))]
    words += ["dataset=folder", f"dataset.root={tmp_path / 'data'}", f"dataset.normalise='{rule}'"]
    words += [f"dataset.fit={fit}", f"dataset.image_size={48 if fit == 'pad' else 16}"]
    words += ["dataset.mask_threshold=127", "hidden_activation=prelu"]
    words += ["activation=learned_tail"] if fit == "pad" else []
    run_dir = Path(segexp.run([*words, f"outputs={tmp_path}"])["run_dir"])
    # An image of another size, whose sides need padding: its masks are those of predict.
    stored_HW = np.random.default_rng(3).integers(0, 256, (43, 37)).astype(np.uint8)
    Image.fromarray(stored_HW).save(tmp_path / "new.png")
    words = ["predict", str(run_dir), str(tmp_path / "new.png"), "-o", str(tmp_path / "p"), "--probabilities"]
    assert cli.main(words) == 0
    expected_HW = np.load(tmp_path / "p" / "new_probabilities.npz")["probabilities"]
    own = segexp.load(run_dir)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = own(torch.from_numpy(stored_HW)[None, None])
        own(torch.zeros(1, 1, 40, 40))  # the size of the run's images
    if fit == "resize":
        with pytest.warns(UserWarning, match=r"16 x 16 px.*own size"):
            own(torch.zeros(1, 1, 16, 16))
    np.testing.assert_allclose(loaded[0, 0], expected_HW.reshape(43, 37), atol=1e-6)
    size = (48, 40) if fit == "pad" else (16, 16)
    for form in ("pt2", "onnx") if find_spec("onnxscript") else ("pt2",):
        path = tmp_path / f"network.{form}"
        done = export(run_dir, form, True, path)
        assert done["difference"] < 1e-4
        assert "test images of the run" in done["checked_on"]
        assert "before any resizing" in metadata_of(path)["input"]
        read = session_of(path) if form == "onnx" else torch.export.load(path).module()
        p = read(by_hand(stored_HW[..., None].astype(float), rule, size, fit)).detach().double()
        if fit == "resize":  # the logits back to the image's own size
            p = torch.nn.functional.interpolate(p.logit(), (43, 37), mode="bilinear").sigmoid()
        np.testing.assert_allclose(p[0, 0, :43, :37], expected_HW.reshape(43, 37), atol=1e-4)
    with pytest.raises(UsageError, match="ReLU in place of prelu"):
        export(run_dir, "smp", False, tmp_path / "folder")
    (tmp_path / "data").rename(tmp_path / "gone")
    assert "pictures in the run" in export(run_dir, "safetensors", False, tmp_path / "a.safetensors")["checked_on"]
