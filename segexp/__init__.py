"""segexp: which activation functions should my segmentation network use?

From Python: `output_activation`, `hidden_activation`, `head`, `loss`, `build_model`, `audit`, `confusion_counts`,
`run`, `load`, `use_plugins`, `read_collected`, `load_study` and `compare`, documented in `segexp.api`,
`segexp.records.collected`, `segexp.notebook` and docs/python.md. They are looked up when first used: `import segexp`
itself imports nothing else.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segexp.api import (
        audit,
        build_model,
        confusion_counts,
        head,
        hidden_activation,
        load,
        loss,
        output_activation,
        run,
        use_plugins,
    )
    from segexp.notebook import compare, load_study
    from segexp.records.collected import read_collected

__version__ = "0.2.0"

__all__ = [
    "audit",
    "build_model",
    "compare",
    "confusion_counts",
    "head",
    "hidden_activation",
    "load",
    "load_study",
    "loss",
    "output_activation",
    "read_collected",
    "run",
    "use_plugins",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'segexp' has no attribute {name!r}")
    if name == "read_collected":
        # Needs no torch.
        from segexp.records.collected import read_collected

        return read_collected
    if name in ("compare", "load_study"):
        from segexp import notebook

        return getattr(notebook, name)
    from segexp import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
