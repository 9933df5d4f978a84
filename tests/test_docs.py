"""What README, docs and CONTRIBUTING print is true: their commands are parsed and composed, their examples are run."""

import doctest
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from timing import within
from tiny import TINY, counts_on_test

from segexp.cli import main
from segexp.commands import COMMANDS, parser_of
from segexp.config import CODE_GROUPS
from segexp.config.compose import _known_keys, compose, compose_job, hydra_session, parse_overrides, readable, typed_of
from segexp.data import adapters
from segexp.records import read_table
from segexp.registry import plugins

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = ["README.md", *sorted(p.relative_to(REPOSITORY).as_posix() for p in (REPOSITORY / "docs").glob("*.md"))]
FIRST_COMMAND = "pip install -e . && segexp train activation=arctan loss=dice"
TEST_COMMAND = "pip install -e '.[test]' && pytest"


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def lines_of(page: str) -> list[list[str]]:
    """Every `segexp ...` line of a page's shell blocks, as words after segexp."""
    text = "\n".join(blocks(REPOSITORY / page, "bash")).replace("\\\n", " ")
    lines = [line.partition("&& ")[2] if line.startswith("pip") else line for line in text.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("segexp")]


LINES = [pytest.param(words, id=f"{page}: {' '.join(words)[:70]}") for page in PAGES for words in lines_of(page)]


def test_the_readme_is_short_and_its_two_commands_come_first() -> None:
    text = (REPOSITORY / "README.md").read_bytes()
    assert text.count(b"\n") <= 200
    assert len(text) <= 13_000
    shown = [block.strip() for block in blocks(REPOSITORY / "README.md", "bash")]
    assert shown[:2] == [FIRST_COMMAND, TEST_COMMAND]
    script = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    assert "pip install --quiet -e '.[test]'" in script
    assert "\npytest\n" in script


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "SECURITY.md"])
def test_every_link_leads_somewhere(page: str) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            assert ((REPOSITORY / page).parent / target).exists(), target


@pytest.mark.parametrize("words", LINES)
def test_every_line_is_understood(words: list[str]) -> None:
    """Its flags are those of the command's parser; what `train` and `tune` override composes."""
    parser = parser_of(words[0])
    parser.parse_intermixed_args(words[1:])
    if words[0] != "train" or {"--from", "--config-dir", "--plugin"} & set(words):
        return
    with hydra_session():
        overrides = readable([word for word in words[1:] if not word.startswith("-")])
        single = []
        for word, override in zip(overrides, parse_overrides(overrides), strict=True):
            key, _, value = word.partition("=")
            first = "0" if value.startswith("range(") else value.split(",")[0]
            single.append(f"{key}={first}" if override.is_sweep_override() else word)
        if "dataset=nnunet" in single:
            single.append("dataset.num_classes=3")  # otherwise dataset.json is asked
        # As a sweep composes its jobs, each choice of groups once.
        typed_of(compose_job([word for word in single if not word.startswith(("tuned=", "hydra"))], ()))


def test_every_key_exists() -> None:
    """Inline `key=value` and `'key=[...]'` examples."""
    text = "".join((REPOSITORY / page).read_text(encoding="utf-8") for page in PAGES)
    keys = re.findall(r"`'?((?:dataset|trainer|head|split|backbone|metrics|study|optimizer|init)\.[a-z_]+)", text)
    assert len(keys) > 20
    with hydra_session():
        known = {key for name in adapters() for key in _known_keys((f"dataset={name}",))}
    assert not {key for key in keys if key not in known and not key.endswith((".csv", ".folds", ".fold"))}


def test_every_command_is_explained() -> None:
    text = "".join((REPOSITORY / page).read_text(encoding="utf-8") for page in PAGES)
    assert [name for name in COMMANDS if f"segexp {name}" not in text] == []


def test_the_tables_are_those_of_the_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    script = str(REPOSITORY / "scripts" / "catalogues.py")
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    from segexp import losses
    from segexp.registry import Registry

    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    import catalogues

    text = (REPOSITORY / "docs" / "catalogues.md").read_text(encoding="utf-8")
    fewer: Registry[Any] = Registry("loss")
    fewer.add("mse", losses.LOSSES["mse"])
    monkeypatch.setattr(losses, "LOSSES", fewer)
    assert catalogues.renewed(text) != text
    with pytest.raises(ValueError, match="0 places for the table of commands"):
        catalogues.renewed("")


EXAMPLES = [page for page in PAGES if blocks(REPOSITORY / page, "python") and page != "docs/plugins.md"]


@pytest.mark.slow
def test_the_plugin_of_the_docs_passes_its_check(tmp_path: Path) -> None:
    (tmp_path / "parts.py").write_text("".join(blocks(REPOSITORY / "docs" / "plugins.md", "python")), encoding="utf-8")
    assert main(["check-plugin", str(tmp_path / "parts.py")]) == 0
    plugins.use([])


def test_every_entry_has_a_small_plot() -> None:
    """docs/*.svg of scripts/catalogue_plots.py, which keep names as text."""
    files = {"hidden_activation": "hidden_activations", "activation": "activations", "loss": "losses"}
    for kind, file in files.items():
        text = (REPOSITORY / "docs" / f"{file}.svg").read_text(encoding="utf-8")
        shown = {name.removesuffix(" (initial)") for name in re.findall(r">([^<>\n]+)</text>", text)}
        assert set(CODE_GROUPS[kind]) - {"native", "sum"} <= shown


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] * (page in ("docs/python.md", "README.md"))) for page in EXAMPLES],
)
def test_python_examples_run(page: str) -> None:
    text = "\n".join(blocks(REPOSITORY / page, "python"))
    examples = doctest.DocTestParser().get_doctest(text, {}, page, None, None)
    assert len(examples.examples) >= 5
    assert doctest.DocTestRunner().run(examples).failed == 0


@pytest.mark.slow
def test_the_tutorial_can_be_followed() -> None:
    """Every command of docs/tutorial.md in its order, at tiny sizes: it succeeds, and prints the tables of the page."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    script = str(REPOSITORY / "scripts" / "tutorial.py")
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pictures = list((REPOSITORY / "docs" / "tutorial").iterdir())
    assert sum(path.stat().st_size for path in pictures) < 400_000


@pytest.mark.slow
def test_contributed_examples_work(tmp_path: Path) -> None:
    """Activation, loss and architecture of CONTRIBUTING.md, pasted into their registries, train together."""
    activation, _, loss, architecture = blocks(REPOSITORY / "CONTRIBUTING.md", "python")
    script = tmp_path / "contributed.py"
    script.write_text(
        "import segexp.activations.output.symmetric as o\n"
        "import segexp.losses.pixelwise as l, segexp.models.architectures as m\n"
        f"exec(compile({activation!r}, 'activation', 'exec'), o.__dict__)\n"
        f"exec(compile({loss!r}, 'loss', 'exec'), l.__dict__)\n"
        f"exec(compile({architecture!r}, 'architecture', 'exec'), m.__dict__)\n"
        "from segexp.cli import main\n"
        "chosen = ['activation=sigmoid_asinh', 'loss=power_error', 'model=unet_instancenorm']\n"
        f"raise SystemExit(main(['train', *chosen, 'outputs={tmp_path}/o', *{list(TINY)!r}]))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "unet_instancenorm/tu-test_resnet, sigmoid_asinh + power_error" in done.stdout


def test_contributed_hidden_activation_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is listed without another edit, its facts are true, and its derivative is that of its value."""
    import torch

    from segexp.activations import hidden
    from segexp.commands import list as listing
    from segexp.registry import Registry

    registry: Registry[Any] = Registry("hidden_activation")
    monkeypatch.setattr(hidden, "HIDDEN_ACTIVATIONS", registry)
    _, example, _, _ = blocks(REPOSITORY / "CONTRIBUTING.md", "python")
    exec(compile(example, "hidden activation", "exec"), vars(hidden) | vars(hidden.curved))
    (row,) = listing.listed("hidden_activations")
    assert (row["name"], row["cost"]) == ("soft_left", "not measured")
    made = hidden.make_hidden("soft_left", {"init": 2.0, "scope": "both"}).double()
    assert [key for key, _ in made.named_parameters()] == row["learnable"]
    assert hidden.measured_gain(hidden.make_hidden("soft_left", {})) == pytest.approx(row["gain"], abs=1e-4)
    x = torch.tensor([-50.0, -1.0, 0.0, 3.0], dtype=torch.float64, requires_grad=True)
    assert made(x).tolist() == pytest.approx([-50 / 101, -1 / 3, 0, 3])
    assert torch.autograd.grad(made(x).sum(), x)[0].tolist() == pytest.approx([101**-2, 1 / 9, 1, 1])


def test_contributed_preset_works(tmp_path: Path) -> None:
    preset = blocks(REPOSITORY / "docs" / "data.md", "yaml")[0]
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "kidneys.yaml").write_text(preset)
    with hydra_session(tmp_path) as extra:
        config = compose(["dataset=kidneys"], extra)
    assert (config.dataset.name, config.dataset.adapter, config.dataset.num_classes) == ("kidneys", "folder", 3)


AFTER_FIRST_COMMAND = 0.80, 0.90
"""Test Dice of the first command's run: it has learned, and leaves something to gain."""


BARE_EPOCHS = """
import json
from benchmarks import seconds
from benchmarks.epochs import made, plain_loop
with made("activation=arctan", "loss=dice", "trainer.device=cpu") as (spec, scorer, task):
    epoch = plain_loop(spec, scorer, task)
    print(json.dumps([seconds(epoch) for _ in range(2)]))
"""


@pytest.mark.slow
@pytest.mark.alone
def test_the_first_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first command of the README after its installation: little beyond 8 epochs of a plain loop, test Dice at
    least 0.80, where an untrained network and an Otsu threshold are far below."""
    command = FIRST_COMMAND.split("&& ")[1]
    words = [sys.executable, "-m", *command.split(), f"outputs={tmp_path}"]
    usual = {key: value for key, value in os.environ.items() if not key.startswith("OMP_")}

    def bare_epochs() -> list[float]:
        """Seconds of epochs of a plain loop with the same network, batches and threads."""
        told = subprocess.run(
            [sys.executable, "-c", BARE_EPOCHS], capture_output=True, text=True, check=True, cwd=REPOSITORY, env=usual
        )
        return json.loads(told.stdout)

    before = bare_epochs()
    started = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path, env=usual)
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    epoch = statistics.median(before + bare_epochs())
    (run_dir,) = (tmp_path / "default").iterdir()
    assert str(run_dir) in done.stdout
    dice = read_table(run_dir / "summary.csv", "summary")["dice"].item()
    untrained, otsu = _untrained_and_otsu()
    with capsys.disabled():
        print(
            f"\nfirst command: {seconds:.0f} s, a bare epoch {epoch:.1f} s; "
            f"test Dice {dice:.3f} (untrained {untrained:.3f}, Otsu {otsu:.3f})"
        )
    assert AFTER_FIRST_COMMAND[0] <= dice <= AFTER_FIRST_COMMAND[1]
    assert otsu <= 0.55
    assert untrained < 0.5
    assert within(seconds - 1.5 * 8 * epoch, 15)


@pytest.mark.slow
def test_the_embedded_task_is_not_used_up_by_the_first_command(tmp_path: Path) -> None:
    """Training three times as long still gains: what a study on it compares is not a ceiling."""
    words = [*FIRST_COMMAND.split("&& ")[1].split(), f"outputs={tmp_path}", "trainer.epochs=24", "trainer.threads=1"]
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run_dir,) = (tmp_path / "default").iterdir()
    assert read_table(run_dir / "summary.csv", "summary")["dice"].item() > AFTER_FIRST_COMMAND[1] + 0.01


def _untrained_and_otsu() -> tuple[float, float]:
    """Test Dice of the network before training, and of Otsu's threshold, on the default data set and split."""
    import torch
    from skimage.filters import threshold_otsu

    from segexp.data.batches import make_reader, training_statistics
    from segexp.running import prepare
    from segexp.running.build import initial_network

    with hydra_session():
        prepared = prepare(compose(["trainer.device=cpu"]))
    built, _, fit = initial_network(prepared)
    network = built.network.eval()
    normalise = training_statistics(make_reader(prepared.image_set, fit), prepared.split["train"])

    def otsu(image: torch.Tensor) -> torch.Tensor:
        return (image > threshold_otsu(image.numpy())).float()

    return (
        counts_on_test(lambda image: network(normalise(image / 255)).sigmoid(), prepared)[1],
        counts_on_test(otsu, prepared)[1],
    )
