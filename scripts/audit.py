"""Known vulnerabilities of the packages in this environment, by pip-audit from osv.dev.

Exits with 1 where an update would remove one. Where advisories cannot be reached nothing is
audited: this is said, and no failure.
"""

import json
import subprocess
import sys

COMMAND = (sys.executable, "-m", "pip_audit", "--skip-editable", "--vulnerability-service", "osv", "--format", "json")
UNREACHABLE = ("ConnectionError", "ConnectTimeout", "ReadTimeout", "ServiceError")


def main() -> int:
    done = subprocess.run([*COMMAND, "--progress-spinner", "off"], capture_output=True, text=True, check=False)
    last = (done.stderr.strip().splitlines() or [""])[-1]
    if not done.stdout.strip():
        if any(word in done.stderr for word in UNREACHABLE):
            print(f"SKIPPED, nothing was audited: {last[:200]}")
            return 0
        print(f"pip-audit failed (pip install -e '.[dev]' installs it): {last[:200]}")
        return 2
    packages = json.loads(done.stdout)["dependencies"]
    audited = [package for package in packages if "vulns" in package]
    found = [(p["name"], p["version"], advisory) for p in audited for advisory in p["vulns"]]
    for name, version, advisory in found:
        print(f"{name} {version}: {advisory['id']}, fixed in {', '.join(advisory['fix_versions']) or 'no version yet'}")
    others = sorted(package["name"] for package in packages if "vulns" not in package)
    print(f"{len(audited)} packages audited, {len(found)} vulnerabilities; not audited: {', '.join(others) or 'none'}")
    return 1 if any(advisory["fix_versions"] for _, _, advisory in found) else 0


if __name__ == "__main__":
    sys.exit(main())
