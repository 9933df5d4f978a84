"""The options of a data set as its preset has them."""

from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from segexp.config import configs_dir, preset_chain

T = TypeVar("T")


def shipped(kind: type[T], preset: str, **options: Any) -> T:
    """The values of the preset but for ``options``, through the types of ``kind``."""
    files = [OmegaConf.load(path) for path in preset_chain(configs_dir() / "dataset" / f"{preset}.yaml")]
    for file in files:
        assert isinstance(file, DictConfig)
        file.pop("defaults", None)
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), *files, options))
    assert isinstance(config, kind)
    return config
