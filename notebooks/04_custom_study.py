# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4. A custom study
#
# When does RPO help, and how much? A study is defined by methods and axes. `api.study` runs it, as the command
# `rpo study STUDY.yaml` does; the records are a table.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

from bandits.methods.method_config import MethodConfig
from bandits.study.config import StudyConfig, count_fits
from rpo import api
from rpo_io.figures import PALETTE

folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The configuration
#
# There are eight responses. Half of them are *rare* and bad: each is compared about once, for every amount of data.
# How does the gap depend on $\eta$, and is one $\eta$ good for every $N$? The rule `theorem` is the $\eta$ of
# Theorem 5.3, which falls like $1/\sqrt N$; the other values are constants. (DPO has no $\eta$, so its five fits are
# equal.)

# %%
study = StudyConfig(
    name="custom",
    methods=[
        MethodConfig(method="rpo", options={"baseline": "given"}),
        MethodConfig(method="dpo"),
    ],
    comparisons=[300, 3000, 30_000],
    seeds=100,
    eta=[0.0003, 0.003, 0.03, 0.3, "theorem"],
    design={
        "actions": 8,
        "rare": 4,
        "rare_comparisons": 1.0,
        "target_coverage": 1.5,
        "reward_max": 2.0,
    },
)
print(f"{count_fits(study):,} fits")

# %% [markdown]
# ## The run
#
# The function writes the same files as the command.

# %%
result = api.study(study, out=folder / "out")
print(sorted(path.name for path in result.folder.iterdir()))

# %% [markdown]
# ## The records
#
# The records have one row per fit. The format is Parquet, which R, polars, pandas (`records.to_pandas()`) and
# `pyarrow` read.

# %%
records = result.records
print(records.num_rows, "rows;", ", ".join(records.column_names[:14]), "...")
mean = records.group_by(["label", "eta_rule", "comparisons"]).aggregate(
    [("gap", "mean"), ("eta", "mean")]
)
mean.slice(0, 3).to_pylist()

# %% [markdown]
# ## A figure for the question

# %%
sizes = (300, 3000, 30_000)
at = {(row["label"], row["eta_rule"], row["comparisons"]): row for row in mean.to_pylist()}
constants = sorted({rule for _, rule, _ in at} - {"theorem"}, key=float)

figure, ax = plt.subplots(figsize=(8, 4.4), layout="constrained")
for n, name in zip(sizes, ("orange", "green", "blue"), strict=True):
    gaps = [at["rpo", rule, n]["gap_mean"] for rule in constants]
    ax.plot(
        [float(rule) for rule in constants], gaps, "o-", color=PALETTE[name], label=f"N = {n:,}"
    )
    tuned = at["rpo", "theorem", n]
    ax.plot(tuned["eta_mean"], tuned["gap_mean"], "*", ms=13, mec="black", color=PALETTE[name])
    ax.axhline(at["dpo", "theorem", n]["gap_mean"], color=PALETTE[name], ls=":", lw=1.5)
ax.set_xscale("log")
ax.set_xlabel("weight of the adversary, $\\eta$")
ax.set_ylabel("mean gap to the best policy (units of reward)")
ax.set_title("RPO: lines, and stars at the theorem's $\\eta$. DPO: dotted.")
ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
# %%
best = {n: min((at["rpo", rule, n]["gap_mean"], float(rule)) for rule in constants) for n in sizes}
for n, (gap, eta) in best.items():
    dpo, tuned = (at[name, "theorem", n]["gap_mean"] for name in ("dpo", "rpo"))
    print(f"N = {n:,}: RPO {gap:.3f} at eta {eta}, {tuned:.3f} at the theorem's; DPO {dpo:.3f}")
    assert gap < 0.5 * dpo
assert best[30_000][1] < best[300][1]

# %% [markdown]
# Each curve has a minimum. With a small $\eta$ RPO behaves like DPO. With a large $\eta$ it copies the baseline, and
# more data do not lower the gap. The minimum moves to the left as $N$ grows, as the theorem predicts.

# %% [markdown]
# ## Exercise
#
# Set `rare: 0`, so that all responses are compared often. Does RPO still help, and what does its caution cost?
#
# *Hint: `docs/studies.md` gives the number for one case. It is small, but not zero.*
