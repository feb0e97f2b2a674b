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
# # 4. A study of your own
#
# When does RPO help, and how much? A study is a choice of methods and axes. The same thing that
# `rpo study STUDY.yaml` runs can be run from Python; records are a table.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

from bandits.study.config import StudyConfig, count_fits
from rpo.cli import main
from rpo.runtime.config_files import read_config

folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The choice
#
# Eight responses; half of them are *rare*, bad ones, compared about once each however much data there is.
# Our question: how does the gap depend on $\eta$, and is there one $\eta$ for every $N$? The rule `theorem` takes
# the $\eta$ of Theorem 5.3, which falls like $1/\sqrt N$; the others are constants. (DPO has no $\eta$, and its
# five fits are the same.)

# %%
(folder / "mine.yaml").write_text("""
name: mine
methods:
  - {method: rpo, options: {baseline: given}}
  - {method: dpo}
comparisons: [300, 3000, 30000]
seeds: 100
eta: [0.0003, 0.003, 0.03, 0.3, theorem]
design: {actions: 8, rare: 4, rare_comparisons: 1.0, target_coverage: 1.5, reward_max: 2.0}
""")
study = read_config(folder / "mine.yaml", StudyConfig)
print(f"{count_fits(study):,} fits")

# %% [markdown]
# ## The run
#
# The command, called from Python. From a shell: `rpo study mine.yaml --out out/mine`.

# %%
assert main(["study", str(folder / "mine.yaml"), "--out", str(folder / "out")]) == 0
print(sorted(path.name for path in (folder / "out").iterdir()))

# %% [markdown]
# ## The records
#
# A row a fit, as Parquet: for R, polars, pandas (`records.to_pandas()`), or `pyarrow` itself.

# %%
import pyarrow.parquet as pq

records = pq.read_table(folder / "out" / "records.parquet")
print(records.num_rows, "rows;", ", ".join(records.column_names[:14]), "...")
mean = records.group_by(["label", "eta_rule", "comparisons"]).aggregate(
    [("gap", "mean"), ("eta", "mean")]
)
mean.slice(0, 3).to_pylist()

# %% [markdown]
# ## The figure that the question asks for

# %%
from rpo_io.figures import PALETTE

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
# A curve is a valley. With too little $\eta$ RPO is DPO; with too much it copies the baseline, and then more
# data help nobody. The bottom moves left as $N$ grows, as the theorem says that it should.

# %% [markdown]
# ## Exercise
#
# Set `rare: 0`: no response is hardly ever seen. Does RPO still help, and what does its caution cost?
#
# *Hint: `docs/studies.md` has the number for one case. It is small, and not zero.*
