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

from bandits.grid import Study
from bandits.studies import n_fits
from rpo.cli import main
from rpo.config_files import read_config

folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The choice
#
# Eight responses; half of them are *rare*, bad ones, compared about once each however much data there is.
# Our question: how does the answer depend on $\eta$? The rule `theorem` is Theorem 5.3's.

# %%
(folder / "mine.yaml").write_text("""
name: mine
methods:
  - {method: rpo, options: {baseline: given}}
  - {method: dpo}
  - {method: pessimistic_mle}
comparisons: [300, 3000, 30000]
seeds: 100
eta: [0.0003, 0.003, 0.03, 0.3, theorem]
design: {actions: 8, rare: 4, rare_comparisons: 1.0, coverage: 1.5, reward_max: 2.0}
""")
study = read_config(folder / "mine.yaml", Study)
print(f"{n_fits(study):,} fits")

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
mean = records.group_by(["label", "eta_rule", "comparisons"]).aggregate([("gap", "mean")])
mean.slice(0, 6).to_pylist()

# %% [markdown]
# ## The figure that the question asks for

# %%
from bandits.plots import PALETTE

figure, ax = plt.subplots(figsize=(7.4, 4.2), layout="constrained")
for n, colour in zip((300, 3000, 30_000), ("orange", "green", "blue"), strict=True):
    rows = [row for row in mean.to_pylist() if row["label"] == "rpo" and row["comparisons"] == n]
    given = sorted(
        (float(row["eta_rule"]), row["gap_mean"]) for row in rows if row["eta_rule"] != "theorem"
    )
    ax.plot(*zip(*given, strict=True), "o-", color=PALETTE[colour], label=f"N = {n:,}")
    dpo = next(
        row["gap_mean"]
        for row in mean.to_pylist()
        if row["label"] == "dpo" and row["comparisons"] == n
    )
    ax.axhline(dpo, color=PALETTE[colour], ls=":", lw=1)
ax.set_xscale("log")
ax.set_xlabel("$\\eta$")
ax.set_ylabel("mean gap to the best policy (units of reward)")
ax.set_title("Dotted: DPO, which is $\\eta = 0$")
ax.legend(frameon=False)
# %%
at = {
    (row["label"], row["eta_rule"], row["comparisons"]): row["gap_mean"] for row in mean.to_pylist()
}
ours = min(value for (label, _, n), value in at.items() if label == "rpo" and n == 30_000)
theirs = min(value for (label, _, n), value in at.items() if label == "dpo" and n == 30_000)
print(f"N = 30,000: RPO at its best {ours:.3f}, DPO {theirs:.3f}")
assert ours < 0.5 * theirs

# %% [markdown]
# ## Exercise
#
# Set `rare: 0`: no response is hardly ever seen. Does RPO still help, and what does its caution cost?
#
# *Hint: `docs/studies.md` has the number for one case. It is small, and not zero.*
