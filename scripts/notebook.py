"""Write docs/notebook.ipynb: run its cells on a tiny study and keep what they show (`pip install 'segexp[docs]'`).

    python scripts/notebook.py [FILE]

Takes about a minute. Outputs hold no path of this machine, no time and no version: a new run changes little.
"""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

PAGE = Path(__file__).resolve().parent.parent / "docs" / "notebook.ipynb"

TITLE = """# A study in a notebook

Two output activations, four seeds each, on generated images. The study is so small that it trains in half a minute, and
its verdict says nothing about the activations. With a study of your own, begin at `segexp.load_study`."""

TRAIN = """%%capture
%matplotlib inline
import segexp

tiny = "backbone.name=tu-test_resnet model.encoder_depth=3 model.decoder_channels=[16,8,8] dataset.image_size=32"
short = "study.name=notebook dataset.number=120 trainer.epochs=8 trainer.device=cpu optimizer.lr=0.01"
for activation in ("sigmoid", "arctan"):
    for seed in range(4):
        segexp.run([f"activation={activation}", f"seed={seed}", *tiny.split(), *short.split()])"""

LOAD = """study = segexp.load_study("outputs/notebook")
study"""

SCORES = """study.images[["arm", "seed", "image_id", "dice", "hd95"]].head(3)"""

CURVES = """val = study.epochs[study.epochs["split"] == "val"]
axis = val.groupby(["epoch", "arm"])["dice"].mean().unstack().plot(figsize=(4, 2.5))
axis.set_ylabel("Dice on validation");"""

COMPARE = """found = segexp.compare(study, rope=1)
found"""

NUMBERS = """found.to_frame()[["candidate", "reference", "verdict", "mean", "low", "high", "p_holm"]].round(4)"""

OTHERS = """table = study.images.rename(columns={"arm": "model", "image_id": "case", "dice": "DSC"})
table = table[["model", "seed", "case", "DSC"]]
columns = {"arm": "model", "image": "case", "dice": "DSC"}
segexp.compare(table, columns=columns, reference="model=sigmoid", paired=True)"""

CELLS = (
    ("markdown", TITLE),
    ("code", TRAIN),
    ("markdown", "`load_study` reads run directories, studies and collected tables as three pandas frames."),
    ("code", LOAD),
    ("code", SCORES),
    ("code", CURVES),
    (
        "markdown",
        "`compare` has the options of `segexp compare`. Its result displays itself.",
    ),
    ("code", COMPARE),
    ("code", "found.plot_forest()"),
    ("code", NUMBERS),
    ("markdown", "A DataFrame of other results is read like [their tables](foreign.md)."),
    ("code", OTHERS),
)


def executed() -> nbformat.NotebookNode:
    """The notebook with its outputs, run in an empty folder."""
    made = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    cells = [made[kind](text, id=f"cell-{n}") for n, (kind, text) in enumerate(CELLS)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=600, record_timing=False, resources={"metadata": {"path": folder}}).execute()
    notebook.metadata = nbformat.from_dict({**kernel, "language_info": {"name": "python"}})
    return notebook


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    nbformat.write(executed(), sys.argv[1] if len(sys.argv) > 1 else PAGE)
