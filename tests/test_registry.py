"""Registries: names are unique, mistakes are answered with the nearest name, parameters become typed options."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Optional

import pytest

from segexp.config import CODE_GROUPS, names_in
from segexp.errors import UsageError
from segexp.registry import REQUIRED, Option, Range, Registry, Since, check_option, fields_of, nearest, options_of

ENTRIES = [
    pytest.param(group, name, id=f"{group}-{name}") for group, entries in CODE_GROUPS.items() for name in entries
]


def test_a_registry_keeps_its_order_and_refuses_a_second_entry_of_a_name() -> None:
    registry: Registry[str] = Registry("fruit")
    for name in ("pear", "apricot", "fig"):
        registry.add(name, name.upper())
    assert list(registry) == ["pear", "apricot", "fig"]
    assert registry.find("apricot") == "APRICOT"
    with pytest.raises(ValueError, match=r"duplicate.* fruit .*'pear'"):
        registry.add("pear", "another")
    assert registry["pear"] == "PEAR"
    with pytest.raises(UsageError, match=r"^unknown fruit 'aprikot'.*apricot\b"):
        registry.find("aprikot")


@pytest.mark.parametrize(("name", "valid", "end"), [
    ("archtan", ["arctan", "sigmoid"], "; did you mean arctan?"),
    ("zzz", ["arctan", "sigmoid"], "; valid: arctan, sigmoid"),
    ("zzz", [f"name{i}" for i in range(40)], "; valid: " + ", ".join(f"name{i}" for i in range(40))),
    ("zzz", [f"name{i}" for i in range(41)], ""),
])  # fmt: skip
def test_nearest(name: str, valid: list[str], end: str) -> None:
    """A close name, else all of them, else (too many) none."""
    assert nearest(name, valid) == end


def test_keyword_only_parameters_are_options() -> None:
    def entry(
        x: float,
        y: float = 2.0,
        *,
        rate: float = 0.5,
        steps: int = 3,
        squared: bool = False,
        word: Literal["batch", "image"] = "image",
        level: Literal[1, 2] = 1,
        limit: float | None = None,
        top: Optional[int] = 4,  # noqa: UP045
    ) -> None: ...

    assert options_of(entry) == (
        Option("rate", float, 0.5),
        Option("steps", int, 3),
        Option("squared", bool, False),
        Option("word", str, "image", ("batch", "image")),
        Option("level", int, 1, (1, 2)),
        Option("limit", Optional[float], None),  # noqa: UP045
        Option("top", Optional[int], 4),  # noqa: UP045
    )


def test_fields_of_a_section_are_declared_as_options_are() -> None:
    @dataclass
    class Inner:
        x: int = 1

    @dataclass
    class Section:
        word: Annotated[str, ("a", "b")] = REQUIRED
        share: Annotated[float | None, Range(0, 1), Since(None)] = None
        plain: int = REQUIRED
        inner: Inner = field(default_factory=Inner)

    word, share, plain = fields_of(Section)
    assert word == Option("word", str, REQUIRED, ("a", "b"))
    assert share == Option("share", Optional[float], None, range=Range(0, 1), since=Since(None))  # noqa: UP045
    assert plain == Option("plain", int, REQUIRED)
    check_option("k", share, None)
    for option, value, limits in ((word, "c", "a, b"), (share, 2.0, "at least 0 and at most 1")):
        with pytest.raises(UsageError, match=f"^k={value} .*{limits}"):
            check_option("k", option, value)


def test_an_option_needs_a_type_and_a_default() -> None:
    def untyped(x: float, *, rate=0.5) -> None: ...

    def without_default(x: float, *, rate: float) -> None: ...

    for entry in (untyped, without_default):
        with pytest.raises(ValueError, match=rf"{entry.__name__}: .*'rate' .*type.*default"):
            options_of(entry)
    assert options_of(lambda x, y=1: x) == ()


@pytest.mark.parametrize(("group", "name"), ENTRIES)
def test_entry_knows_its_name_and_options(group: str, name: str) -> None:
    entry: Any = CODE_GROUPS[group][name]
    assert CODE_GROUPS[group].group == group
    assert entry.name == name
    for option in entry.options:
        assert option.name.isidentifier()
        assert option.name != "name"
        assert not option.choices or option.default in option.choices


@pytest.mark.parametrize("group", CODE_GROUPS)
def test_names_and_aliases_of_a_group_are_unique(group: str) -> None:
    names = names_in(group)
    assert len(names) == len(set(names))
    assert set(CODE_GROUPS[group]) <= set(names)
