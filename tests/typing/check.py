"""Check the types that users see: completeness of the packages, and a script in strict mode.

Run ``python tests/typing/check.py``. It prints the type completeness of every package and the
number of errors of ``user_script.py``, and exits with 1 unless all scores are 100 % and there is no
error. It takes about a minute.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("user_script.py")
PACKAGES = ("rpo_theory", "bandits", "llm", "rpo_io", "rpo")


def run_pyright(*arguments: str, folder: Path) -> dict[str, Any]:
    """Run pyright in a folder, with the packages of this environment, and return its report."""
    binaries = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}"}
    done = subprocess.run(
        [str(binaries / "pyright"), "--outputjson", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError:
        raise SystemExit(f"pyright failed: {done.stdout}{done.stderr}") from None


def errors(diagnostics: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the errors of a list of diagnostics, one line each."""
    for found in diagnostics:
        if found["severity"] == "error":
            line = found.get("range", {}).get("start", {}).get("line", 0) + 1
            message = " ".join(found["message"].split())
            rule = f" ({found['rule']})" if "rule" in found else ""
            yield f"{found.get('file', 'pyright')}:{line}: {message}{rule}"


def print_lines(lines: Iterable[str]) -> None:
    """Print one line each; print nothing if there are none."""
    sys.stdout.writelines(f"{line}\n" for line in lines)


def check_package(package: str) -> bool:
    """Print the share of public symbols with known types; return whether it is 100 %."""
    # Inside the checkout pyright would find the folder of sources, which is not installed.
    with tempfile.TemporaryDirectory() as folder:
        arguments = ("--verifytypes", package, "--ignoreexternal")
        report = run_pyright(*arguments, folder=Path(folder))
    completeness = report.get("typeCompleteness", {})
    counts = completeness.get("exportedSymbolCounts", {})
    score = completeness.get("completenessScore", 0.0)
    known, n_symbols = counts.get("withKnownType", 0), sum(counts.values())
    complete = n_symbols > 0 and known == n_symbols and score == 1
    if not complete:
        for symbol in completeness.get("symbols", ()):
            if symbol["isExported"] and not symbol["isTypeKnown"]:
                print_lines([symbol["name"], *errors(symbol["diagnostics"])])
        print_lines(errors(report["generalDiagnostics"]))
    print(f"{package}: {score:.2%} of {n_symbols} public symbols have known types")
    return complete


def check_script() -> bool:
    """Print the number of errors of the user's script; return whether there are none."""
    report = run_pyright(str(SCRIPT), folder=ROOT)
    summary = report["summary"]
    print_lines(errors(report["generalDiagnostics"]))
    print(f"{SCRIPT.relative_to(ROOT)}: {summary['errorCount']} errors in strict mode")
    return summary["errorCount"] == 0 and summary["filesAnalyzed"] == 1


def main() -> int:
    """Run all checks and return the exit code."""
    passed = [check_package(package) for package in PACKAGES]
    passed.append(check_script())
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
