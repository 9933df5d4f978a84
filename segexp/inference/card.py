"""The card of a run or a study: a folder that `huggingface_hub` uploads as it is.

run:   README.md config.json model.safetensors
study: README.md runs.csv comparisons.csv forest.png forest.svg

A card is published: it has no path, host, command line, image or name of an image or patient, and names are escaped for
Markdown.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from segexp.compare.result import METRICS, Block, Comparison
from segexp.compare.scorer import Scorer
from segexp.compare.statistics import one_sample
from segexp.compare.verdict import compare, load_checked
from segexp.compare.warnings import convergence_of
from segexp.data.description import data_lines
from segexp.errors import UsageError
from segexp.inference.published import placed, settings_of
from segexp.records import text_rows
from segexp.records.formatting import image_bytes, markdown_table, pluralize
from segexp.records.provenance import provenance_of
from segexp.records.runs import Run, run_at
from segexp.records.scores import SCORES, label_of, shown_score
from segexp.report.drawing import styled
from segexp.report.figures import forest
from segexp.report.formats import as_markdown, comparisons_csv, runs_csv
from segexp.report.tables import clean, folders_of, only_names

LICENCE = re.compile(r"cc0-1\.0|cc-by(-nc)?(-sa|-nd)?-[34]\.0|mit|apache-2\.0|bsd-[23]-clause")
"""Names that the front matter may have; another licence is "other", with its name."""


def write_card(path: Path, out: Path) -> None:
    """Write the card of a run directory or a study to the folder ``out``.

    Raises UsageError where no run is done, files of a run are damaged, or ``out`` holds other content.
    """
    done = [run for run in load_checked([path]).runs if run.state == "done"]
    if not (scored := [run for run in done if not run.collected]):
        cure = "name the folder of the runs behind its tables" if done else f"`segexp status {path}` lists their states"
        raise UsageError(f"{path} holds no finished run: {cure}")
    runs = [run_at(run.path) for run in scored]
    with placed(out) as folder:
        folder.mkdir()
        alone = (path / "run.json").exists()
        title, results, body, limits = _of_run(scored[0], runs[0], folder) if alone else _of_study(path, runs, folder)
        limits = [
            "The training images are fixed: no interval says what other training images would give.",
            "Training and test images share their source: images of other sites or devices can score lower.",
            *filter(None, [convergence_of(runs)["warning"]]),
            *_nameless(limits, runs),
        ]
        settings = [settings_of(run.config) for run in runs]
        protocol = {key: ", ".join(dict.fromkeys(str(of.get(key)) for of in settings)) for key in settings[0]}
        made = {k: v for k, v in provenance_of([path], runs).items() if k not in ("read from", "hosts")}
        made |= {"runs": [f"{n} {state}" for state, n in made["runs"].items()]}
        made["compared with"] = [f"{name} {version}" for name, version in made["compared with"].items()]
        made |= {"identity": runs[0].record["identity"]} if alone else {}
        origin = [f"{k}: {v if isinstance(v, str) else ', '.join(map(str, v))}" for k, v in made.items()]
        parts = [f"---\n{_front(title, results, runs).to_yaml()}\n---", f"# {escaped(title)}", body]
        parts += ["## Data", _listed(_data(runs)), "## Limits", _listed(limits), "## Protocol"]
        parts += [_table({"setting": k, "value": v} for k, v in protocol.items() if v != "None")]
        parts += ["## Provenance", _listed(origin)]
        (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def escaped(value: object) -> str:
    """Text without paths, and without characters that Markdown or HTML would read as markup."""
    return re.sub(r"([\\`*_\[\]<>#~$])", r"\\\1", clean(only_names(str(value))))


def _listed(lines: Iterable[object]) -> str:
    return "\n".join(f"- {escaped(line)}" for line in lines)


def _table(rows: Iterable[Mapping[str, object]]) -> str:
    return markdown_table([{title: escaped(cell) for title, cell in row.items()} for row in rows])


def _nameless(warnings: Sequence[str], runs: Sequence[Run]) -> tuple[str, ...]:
    """The warnings without those that name an image or a patient."""
    tables = {run.row["split_sha"]: run.path / "split.csv" for run in runs}
    rows = [row for path in tables.values() if path.exists() for row in text_rows(path, "split")]
    names = "|".join(re.escape(name) for row in rows for name in {row["image_id"], row["group_id"]} if name)
    kept = [line for line in warnings if not (names and re.search(rf"(?<!\w)({names})(?!\w)", line))]
    left_out = pluralize(len(warnings) - len(kept), "warning")
    return (*kept, *([f"{left_out} that may name images: see the study itself"] if len(kept) < len(warnings) else []))


def _unnamed(block: Block, runs: Sequence[Run]) -> Block:
    """The block without names of images and patients."""

    def of_comparison(found: Comparison) -> Comparison:
        influence = [one if one.what == "seed" else replace(one, name="(not named)") for one in found.influence]
        dropped = "; ".join(_nameless([found.dropped], runs)) if found.dropped else ""
        return replace(found, influence=tuple(influence), dropped=dropped, warnings=_nameless(found.warnings, runs))

    comparisons = tuple(of_comparison(found) for found in block.comparisons)
    return replace(block, comparisons=comparisons, warnings=_nameless(block.warnings, runs))


def _data(runs: Sequence[Run]) -> list[str]:
    """Lines about each data set."""
    lines = []
    for run in {str(run.config["dataset.name"]): run for run in reversed(runs)}.values():
        name, url, licence, cite = (run.config.get(f"dataset.{key}") for key in ("name", "url", "licence", "citation"))
        lines += [f"{name}: {url or 'no address recorded'}"]
        data: Mapping[str, Any] = run.record.get("data") or {}
        generated = data.get("location") == "generated"
        lines += data_lines({**data, "location": "", "unused": {}}) if data else []
        unknown = "none: generated images" if generated else "unknown: ask the owner of the data before you publish"
        lines += [f"licence: {licence or unknown}"]
        lines += [f"citation: {cite or 'none recorded'}"]
    return lines


def _front(title: str, results: list[EvalResult], runs: Sequence[Run]) -> ModelCardData:
    """The front matter; with the licence of the data where it is known and the same for all."""
    licences = {str(run.config.get("dataset.licence") or "") for run in runs}
    slug = re.sub("^cc0$", "cc0-1.0", _slug(licences.pop().lower())) if len(licences) == 1 else ""
    terms: Any = {"license": slug} if LICENCE.fullmatch(slug) else {"license": "other", "license_name": slug}
    return ModelCardData(
        model_name=title,
        library_name="segexp",
        pipeline_tag="image-segmentation",
        tags=["segexp", "image-segmentation", *sorted({str(run.config["activation.name"]) for run in runs})],
        datasets=sorted({_slug(run.config["dataset.name"]) for run in runs}),
        metrics=sorted({result.metric_type for result in results}),
        eval_results=results,
        **(terms if slug else {}),
    )


def _slug(name: object) -> str:
    return re.sub(r"[^\w.]+", "-", str(name)).strip("-")


def _result(dataset: str, metric: str, value: float, arm: str = "") -> EvalResult:
    name = METRICS[metric].title + f", {arm}" * bool(arm)
    return EvalResult("image-segmentation", _slug(dataset), dataset, metric, value, metric_name=name)


Parts = tuple[str, list[EvalResult], str, list[str]]  # title, results for the front matter, text, limits


def _of_run(scored: Run, run: Run, folder: Path) -> Parts:
    """Write the weights. scored: the run with its images."""
    from segexp.inference.export import export

    facts = export(run.path, "safetensors", False, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    summary, data, rows = run.summary, str(run.config["dataset.name"]), []
    for score in (one for one in SCORES.values() if one.in_result and not math.isnan(run.number(one.name))):
        limits = ""
        if score.name in METRICS and score.per_image:
            found = one_sample(Scorer(METRICS[score.name], summary["empty_policy"]).values([scored]).values_KU[0])
            low, high = max(found.low, 0.0), min(found.high, score.highest)  # a t interval knows no bounds
            limits = f"{shown_score(low)} to {shown_score(high)}"
        value = shown_score(summary[score.name])
        rows.append({"test score": label_of(score, summary, run.config), "value": value, "95 % interval": limits})
    tuned = facts["threshold_tuned"]
    decision = "The largest class wins" if tuned is None else f"Foreground: above 0.5; tuned: {tuned:.6g}"
    body = [
        f"Segmentation network with {escaped(facts['activation.name'])} output activation, trained with segexp.",
        _table(rows),
        "## Use",
        escaped(f"Input: {facts['input']}; {facts['sizes']}. {decision}."),
        f"```python\n{usage(facts)}\n```",
    ]
    one = f"Intervals are for new test images and this one network: {summary['n_test']} images, one seed."
    results = [_result(data, name, run.number(name)) for name in ("dice", "iou")]
    return f"{run.config['model.name']} for {data}", results, "\n\n".join(body), [one, *run.record.get("warnings", [])]


def usage(facts: Mapping[str, Any]) -> str:
    """Lines of Python from the files of a card to probabilities."""
    groups = ("model.", "hidden_activation.", "activation.", "backbone.name", "head.", "dataset.background")
    words = {k: v for k, v in facts.items() if k.startswith(groups) and "prior_bias" not in k}
    head = {k.partition(".")[2]: v for k, v in words.items() if k.startswith("activation.")} | facts["learned"]
    mode = "independent" if facts["head.mode"] == "independent" else "softmax"
    words = {k if k[0] == "b" else k.removesuffix(".name"): v for k, v in words.items()}
    words |= {"dataset.num_classes": len(facts["classes"]), "dataset.channels": len(facts["normalisation"]["mean"])}
    given = ", ".join([repr(head.pop("name")), *(f"{key}={value!r}" for key, value in head.items())])
    mean, std = facts["normalisation"]["mean"], facts["normalisation"]["std"]
    rule = "" if (name := facts["dataset.normalise"]) == "train" else f", after dataset.normalise={name}"
    files = ", ".join(map(repr, facts["plugins"]))
    plugins = f"\nsegexp.use_plugins({files})" if files else ""
    return f"""\
import segexp, torch{plugins}
from safetensors.torch import load_file
network = segexp.build_model({words})
network.load_state_dict(load_file("model.safetensors"))
mean, std = (torch.tensor(v).view(-1, 1, 1) for v in ({mean}, {std}))
head = segexp.head(segexp.output_activation({given}), mode={mode!r})
probabilities = head(network.eval()((images - mean) / std)).values_NKHW  # images (N, C, H, W){rule}"""


def _of_study(path: Path, runs: Sequence[Run], folder: Path) -> Parts:
    """Write tables and forest plots."""
    found = compare([path])
    blocks = tuple(_unnamed(block, runs) for block in found.blocks)
    result = replace(found, blocks=blocks, warnings=_nameless(found.warnings, runs))
    public = replace(result, runs=tuple({k: v for k, v in row.items() if k != "host"} for row in result.runs))
    for name, text in (("runs.csv", runs_csv(public)), ("comparisons.csv", comparisons_csv(result))):
        (folder / name).write_text(text, encoding="utf-8")
    body = []
    with styled():
        for n, drawing in enumerate(d for block in result.blocks for d in forest(block, result.metric, "")[:1]):
            name = "forest" + f"-{n + 1}" * (n > 0)
            body.append(f"![{escaped(drawing.alt)}]({name}.png)")
            for kind in ("png", "svg"):
                (folder / f"{name}.{kind}").write_bytes(image_bytes(drawing.figure, kind, dpi=200))
    body.append(only_names(as_markdown(result, ()), folders_of(result)))
    arms = [(block, arm) for block in result.blocks for arm in block.ranking if not math.isnan(arm.mean)]
    results = [
        _result(of.dataset, result.metric.name, arm.mean, ", ".join([arm.arm, *map("=".join, of.conditions.items())]))
        for of, arm in arms
    ]
    seeds = ", ".join(map(str, sorted({arm.n_seeds for _, arm in arms})))
    limits = [f"Seeds per arm: {seeds}. What they can detect, and the floor of any number of seeds, is in the tables."]
    return f"{path.absolute().name}: {', '.join(result.by)}", results, "\n\n".join(body), limits
