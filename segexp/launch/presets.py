"""Where the configuration files are, and what they offer, read without Hydra (for `list` and completion)."""

from pathlib import Path

import segexp


def configs_dir() -> Path:
    """The folder configs/: that of the checkout when running from one, else the copy inside the installed package."""
    package = Path(segexp.__file__).resolve().parent
    checkout = package.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "configs" / "train.yaml").is_file():
        return checkout / "configs"
    return package / "configs"


def preset_names(group: str, folders: tuple[Path, ...] = ()) -> list[str]:
    """Names of the YAML files of a group, sorted; ``folders`` are further configuration folders."""
    names = {p.stem for folder in (configs_dir(), *folders) for p in (folder / group).glob("*.yaml")}
    return sorted(names)


def preset_values(path: Path) -> dict[str, str]:
    """Top-level `key: value  # comment` lines of a preset as text; key -> value, without comments."""
    values = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line[0].isspace() and not line.startswith(("#", "-")) and ":" in line:
            key, _, rest = line.partition(":")
            values[key] = rest.split(" #")[0].strip()
    return values
