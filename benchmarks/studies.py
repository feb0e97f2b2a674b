"""Speed and memory of studies.

    python benchmarks/studies.py [--out DIR] [--fits 1000000]

The benchmark runs a study of RPO through ``rpo study``, records and figures included, on bandits
with 8 prompts and 10 responses. It reports time and peak memory of the process at the full number
of fits and at a tenth of it, compares the time per fit with a loop over SciPy's L-BFGS-B, and
prints the time per fit of every stage of a smaller study.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
from exact_solver import seconds, select
from exact_solver_peers import scipy_reward
from study_profile import print_profile, profile_study

from bandits.environments.designs import Design, draw_design
from rpo_theory.rewards import TabularBox

DESIGN = {
    "contexts": 8,
    "actions": 10,
    "rare": 4,
    "rare_comparisons": 1.0,
    "target_coverage": [1.5, 2.0, 3.0, 4.0, 8.0],
    "reward_max": 2.0,
}
COMPARISONS = [100, 1000, 10000, 100000]
SCIPY_FITS = 12
"""Number of fits by SciPy whose median time is reported."""
PROFILED_SHARE = 10
"""The profile is of a study with a tenth of the fits."""


def write_config(folder: Path, fits: int) -> Path:
    """Write the configuration of a study into an empty folder, and return its path."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    study = {
        "name": "speed",
        "methods": [{"method": "rpo", "options": {"baseline": "given"}}],
        "comparisons": COMPARISONS,
        "seeds": fits // (len(COMPARISONS) * len(DESIGN["target_coverage"])),
        "design": DESIGN,
        "kernel": "numba",
    }
    config = folder / "speed.yaml"
    config.write_text(json.dumps(study))  # JSON is YAML
    return config


def run_study(folder: Path, fits: int) -> dict[str, float]:
    """Run a study in a new process, and return its time and its peak memory."""
    config = write_config(folder, fits)
    start = time.perf_counter()
    command = [sys.executable, "-m", "rpo", "study", str(config), "--out", str(folder / "out")]
    process = os.posix_spawn(sys.executable, command, os.environ)
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit("the study failed")
    elapsed = time.perf_counter() - start
    return {
        "fits": fits,
        "seconds": elapsed,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "mib": usage.ru_maxrss / 1024,
        "seconds_per_fit": elapsed / fits,
    }


def scipy_seconds() -> float:
    """Return the median time of a fit by SciPy, on bandits of the same study."""
    design = Design(**{**DESIGN, "target_coverage": 2.0})
    draws = draw_design(design, 1000, np.arange(SCIPY_FITS))
    assert isinstance(draws.reward_class, TabularBox)
    limits = np.broadcast_to(np.asarray(draws.reward_class.maximum), SCIPY_FITS)
    times = [
        seconds(lambda i=i: scipy_reward(select(draws.problem, i), float(limits[i])))
        for i in range(SCIPY_FITS)
    ]
    return float(np.median(times))


def main() -> None:
    """Measure both sizes, print the results and write ``studies.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--fits", type=int, default=1_000_000)
    args = parser.parse_args()
    tenth, full = (
        run_study(args.out / name, fits)
        for name, fits in (("tenth", args.fits // 10), ("full", args.fits))
    )
    profiled = args.fits // PROFILED_SHARE
    config = write_config(args.out / "profile", profiled)
    profile = profile_study(config, args.out / "profile" / "out", profiled)
    scipy = scipy_seconds()
    ratio = scipy / full["seconds_per_fit"]
    results = {"tenth": tenth, "full": full, "scipy_seconds_per_fit": scipy, "ratio": ratio}
    results["profile"] = profile
    (args.out / "studies.json").write_text(json.dumps(results, indent=1))
    for row in (tenth, full):
        print(
            f"{row['fits']:>9,} fits {row['seconds']:6.1f} s ({row['cpu_seconds']:.1f} s of CPU), "
            f"{row['fits'] / row['seconds']:,.0f} per second, peak {row['mib']:5.0f} MiB"
        )
    print(f"SciPy {1e3 * scipy:.1f} ms per fit, {ratio:.0f} times the time of the study")
    print_profile(profile)


if __name__ == "__main__":
    main()
