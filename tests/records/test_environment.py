"""environment.txt: what was installed, where it came from, and nothing that is secret."""

import importlib.metadata
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from messages import mentions

from segexp.errors import UsageError
from segexp.records import process
from segexp.records.process import environment_text, read_environment


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of distributions, first on the path and alone on it."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(process, "environment_text", environment_text.__wrapped__)
    return tmp_path


def install(site: Path, name: str, version: str, url: dict[str, object] | None = None) -> None:
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nVersion: 9\nName: no\n"
    )
    if url is not None:
        (folder / "direct_url.json").write_text(json.dumps(url))


def lines() -> list[str]:
    return process.environment_text().splitlines()[2:]


def test_every_distribution_with_its_version() -> None:
    # Of now: what other tests imported may have put more on the path since it was first looked up.
    text = environment_text.__wrapped__()
    found = {line.partition("==")[0]: line.partition("==")[2].split()[0] for line in text.splitlines()[2:]}
    places = [place for place in sys.path if not place.endswith("_vendor")]
    expected = {
        d.metadata["Name"]: importlib.metadata.version(d.metadata["Name"])
        for d in importlib.metadata.distributions(path=places)
    }
    assert found == expected
    assert list(found) == sorted(found, key=process._normal)
    assert environment_text().startswith(f"# Python {sys.version.split()[0]}")


@pytest.mark.parametrize(("url", "origin"), [
    (None, ""),
    ({"url": "file:///home/me/x", "dir_info": {"editable": True}}, "  # editable, from file:///home/me/x"),
    ({"url": "file:///home/me/x.whl", "archive_info": {}}, "  # from file:///home/me/x.whl"),
    ({"url": "https://me:secret@host:8080/x.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
     "  # from https://host:8080/x.git@abc"),
    ({"url": "https://secret@host/x.whl?token=secret#sha256=1"}, "  # from https://host/x.whl"),
    ({"url": "ssh://git:secret@host/x"}, "  # from ssh://host/x"),
    ({"nothing": 1}, ""),
])  # fmt: skip
def test_origin_without_secrets(site: Path, url: dict[str, object] | None, origin: str) -> None:
    install(site, "thing", "1.0", url)
    assert lines() == [f"thing==1.0{origin}"]


def test_the_distribution_that_is_imported_counts(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "Some.Thing", "1.0")
    install(site / "later", "some-thing", "2.0")
    install(site / "later", "another", "3.0")
    (site / "broken-1.0.dist-info").mkdir()
    (site / "broken-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\n")
    (site / "~umpy-1.0.dist-info").mkdir()
    monkeypatch.setattr(sys, "path", [str(site), str(site / "later")])
    assert lines() == ["another==3.0", "Some.Thing==1.0"]


def test_copies_inside_another_package_do_not_count(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "thing", "1.0")
    install(site / "setuptools" / "_vendor", "wheel", "2.0")
    monkeypatch.setattr(sys, "path", [str(site), str(site / "setuptools" / "_vendor")])  # as setuptools does
    assert lines() == ["thing==1.0"]


def test_a_broken_origin_is_none(site: Path) -> None:
    for number, text in enumerate(("{", "[1]", '{"url": 1}', '{"url": "file:///x", "vcs_info": 3}')):
        install(site, f"thing{number}", "1.0")
        (site / f"thing{number}-1.0.dist-info" / "direct_url.json").write_text(text)
    assert [line.split("  #")[0] for line in lines()] == [f"thing{n}==1.0" for n in range(4)]


def test_it_comes_back(site: Path, tmp_path: Path) -> None:
    install(site, "Some.Thing", "1.0", {"url": "file:///x", "dir_info": {"editable": True}})
    path = tmp_path / "environment.txt"
    path.write_text(process.environment_text())
    found = read_environment(path)
    assert list(found) == ["Python", "platform", "some-thing"]
    assert mentions(found["some-thing"], "1.0", "editable", "file:///x")
    with pytest.raises(UsageError, match="is missing"):
        read_environment(tmp_path / "nowhere")
    path.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="cannot be read"):
        read_environment(path)


@pytest.mark.slow
def test_pip_takes_it(tmp_path: Path) -> None:
    """As constraints, which pip parses and then has nothing to do with."""
    path = tmp_path / "environment.txt"
    path.write_text(environment_text())
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--dry-run", "-c", str(path), "pip"]
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False).returncode:
        pytest.skip("no pip here")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_it_takes_less_time_than_parsing_metadata() -> None:
    took: dict[str, list[float]] = {"text": [], "parsed": []}
    for _ in range(5):
        began = time.perf_counter()
        environment_text.__wrapped__()
        between = time.perf_counter()
        for distribution in importlib.metadata.distributions():
            assert distribution.metadata["Name"]
        took["text"].append(between - began)
        took["parsed"].append(time.perf_counter() - between)
    assert min(took["text"]) < min(took["parsed"])


PARALLEL = """
import functools, os, sys
from segexp.records import process
process.usable_cores = lambda: 2
def call(n):
    if n == 99:
        raise ValueError("of a call")
    return n, os.getpid()
calls = [functools.partial(call, n) for n in range(6)]
found = process.in_parallel(calls)
assert [n for n, _ in found] == list(range(6)), found
assert os.getpid() not in {pid for _, pid in found}, found
try:
    process.in_parallel([*calls, functools.partial(call, 99)])
except ValueError as error:
    print(error)
import torch
assert {pid for _, pid in process.in_parallel(calls)} == {os.getpid()}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="calls are made one after the other there")
def test_calls_are_made_in_other_processes_unless_torch_is_loaded() -> None:
    done = subprocess.run([sys.executable, "-c", PARALLEL], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "of a call\n"), done.stderr
