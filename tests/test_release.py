"""The container file and the workflows, read as text: no container engine and no GitHub are needed."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import segexp

REPOSITORY = Path(__file__).resolve().parent.parent


def instructions() -> list[tuple[str, list[str]]]:
    """The Dockerfile as (instruction, words), continued lines joined."""
    lines = [line for line in (REPOSITORY / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split()[1:]) for line in joined if line.strip()]


def test_the_container_runs_as_a_user_and_starts_segexp() -> None:
    found = instructions()
    names = [name for name, _ in found]
    last_user = len(names) - 1 - names[::-1].index("USER")
    assert found[last_user][1] not in (["root"], ["0"])
    assert "RUN" not in names[last_user:]
    assert found[names.index("ENTRYPOINT")][1] == ['["segexp"]']


def test_the_container_is_made_of_named_versions_and_no_secrets() -> None:
    found = instructions()
    defaults = dict(word.split("=") for name, words in found if name == "ARG" for word in words)
    assert all(defaults.values())
    assert re.fullmatch(r"\d+\.\d+\.\d+", defaults["CUDA_VERSION"])
    for name, words in found:
        assert name != "ADD", "ADD fetches addresses and unpacks archives"
        if name == "FROM":
            tag = words[0].rpartition(":")[2]
            assert tag != words[0]
            assert set(re.findall(r"\$\{(\w+)\}", tag)) <= set(defaults)
            assert "latest" not in tag
        if name in ("ARG", "ENV"):
            assert not re.search(r"(?i)token|secret|password|_key", " ".join(words))


def test_the_container_gets_only_what_it_copies() -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text().split()
    allowed = [line.removeprefix("!") for line in ignored if line.startswith("!")]
    copied = [words[:-1] for name, words in instructions() if name == "COPY" and not words[0].startswith("--from")]
    assert ignored[0] == "*"
    assert sorted(allowed) == sorted(name for names in copied for name in names)
    assert all((REPOSITORY / name).exists() for name in allowed)


def workflow(name: str) -> dict[Any, Any]:
    content = yaml.safe_load((REPOSITORY / ".github" / "workflows" / name).read_text())
    assert isinstance(content, dict)
    return content


def test_nothing_is_published_unless_somebody_turns_it_on() -> None:
    release = workflow("release.yml")
    assert release[True] == {"workflow_dispatch": None}  # YAML reads the key "on" as true
    build, publish = release["jobs"]["build"], release["jobs"]["publish"]
    assert "vars.PUBLISH == 'true'" in build["if"]
    assert publish["needs"] == "build"
    assert "if" not in publish  # a condition of its own would run without the build
    assert publish["environment"] == "pypi"
    assert (release["permissions"], publish["permissions"]) == ({"contents": "read"}, {"id-token": "write"})
    assert "secrets." not in (REPOSITORY / ".github" / "workflows" / "release.yml").read_text()


@pytest.mark.parametrize("name", ["ci.yml", "release.yml"])
def test_workflows_name_the_versions_of_their_actions(name: str) -> None:
    steps = [step for job in workflow(name)["jobs"].values() for step in job["steps"]]
    used = [step["uses"] for step in steps if "uses" in step]
    assert used
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+|[0-9a-f]{40})", action) for action in used)


def test_ci_runs_the_one_script() -> None:
    (job,) = workflow("ci.yml")["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert subprocess.run(["bash", "-n", ".ci/run"], cwd=REPOSITORY, check=False).returncode == 0


def test_the_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    changes = (REPOSITORY / "CHANGELOG.md").read_text()
    assert citation["version"] == segexp.__version__
    assert f"\n## {segexp.__version__}, " in changes
