"""`make audit`: an answer, no answer, and no pip-audit are three things."""

import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

ADVISORY = {"id": "PYSEC-2024-1", "fix_versions": ["2.0"], "aliases": [], "description": ""}
PACKAGES = [
    {"name": "one", "version": "1.0", "vulns": []},
    {"name": "two", "version": "1.0", "vulns": [ADVISORY]},
    {"name": "segexp", "skip_reason": "editable"},
    {"name": "three", "version": "1.0", "vulns": [{**ADVISORY, "fix_versions": []}]},
]


@pytest.mark.parametrize(("packages", "error", "code", "said"), [
    (PACKAGES, "Found 2 known vulnerabilities", 1, ["two 1.0: PYSEC-2024-1, fixed in 2.0", "3 packages", "segexp"]),
    (PACKAGES[3:], "Found 1 known vulnerability", 0, ["three 1.0: PYSEC-2024-1, fixed in no version yet"]),
    (PACKAGES[:3:2], "", 0, ["1 packages audited, 0 vulnerabilities"]),
    (None, "requests.exceptions.ConnectionError: Name or service not known", 0, ["SKIPPED", "nothing was audited"]),
    (None, "No module named pip_audit", 2, ["failed"]),
])  # fmt: skip
def test_audit(
    packages: object, error: str, code: int, said: list[str], repository: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.syspath_prepend(str(repository / "scripts"))
    monkeypatch.delitem(sys.modules, "audit", raising=False)
    import audit

    answer = "" if packages is None else json.dumps({"dependencies": packages, "fixes": []})
    done = subprocess.CompletedProcess([], 1, answer, error)
    with mock.patch.object(subprocess, "run", return_value=done):
        assert audit.main() == code
    shown = capsys.readouterr().out
    assert all(words in shown for words in said)
    assert "audited" in shown or code == 2
