"""Asks whether the packages of requirements.lock have known vulnerabilities: `make audit`.

Runs pip-audit, which asks a database on the internet. What it can't reach counts as a failure here, while
pip-audit by itself finds nothing against packages that a mirror without that database does not know. Further
flags go to pip-audit: `--ignore-vuln ID` accepts one, `--vulnerability-service osv` asks another database.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

COMMAND = ["-r", "requirements.lock", "--no-deps", "--disable-pip", "-f", "json", "--progress-spinner", "off"]


def main() -> None:
    """Prints vulnerable packages; ends with exit code 1 if there are some, or if any was not checked."""
    parser = argparse.ArgumentParser(
        prog="make audit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags = parser.parse_known_args()[1]
    done = subprocess.run(
        [sys.executable, "-m", "pip_audit", *COMMAND, *flags], capture_output=True, text=True
    )
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        sys.exit(f"nothing was audited, as the database of vulnerabilities can't be reached: {reason}")
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    vulnerable = [package for package in packages if package.get("vulns")]
    for package in vulnerable:
        for one in package["vulns"]:
            names = ", ".join([one["id"], *one["aliases"]])
            mended = ", ".join(one["fix_versions"]) or "no version yet"
            print(f"{package['name']} {package['version']}: {names}; mended in {mended}")
    if unknown:
        sys.exit(
            f"{len(unknown)} of {len(packages)} packages were not audited, as the database does not know "
            f"them ({', '.join(unknown[:3])}, ...); a mirror of a registry may come without one"
        )
    if vulnerable:
        sys.exit(f"{len(vulnerable)} of {len(packages)} packages have known vulnerabilities")
    print(f"no known vulnerability in {len(packages)} packages")


if __name__ == "__main__":
    main()
