"""The documentation site: `sphinx-build -W --keep-going -n docs build/site` (`pip install 'segexp[docs]'`).

The pages are plain Markdown that GitHub shows as well. The reference is written from the code into `_generated/`.
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "scripts")]

import reference  # noqa: E402

import segexp  # noqa: E402

project = "segexp"
author = "the segexp authors"
copyright = author
version = release = segexp.__version__

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
nitpicky = True
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"segexp {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]

if not os.environ.get("SEGEXP_CHECK_EXTERNAL_LINKS"):
    linkcheck_ignore = ["https?://.*"]  # `sphinx-build -b linkcheck` then works without a network

reference.write(HERE / "_generated")


def _inside(app: object, page: str, source: list[str]) -> None:
    """Links to files beside docs/ lead to their copies in the site."""
    source[0] = reference.inside_site(source[0], page.count("/"))


def setup(app: "object") -> None:
    app.connect("source-read", _inside)  # type: ignore[attr-defined]
