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
# # 2. Coverage, and what the bound says
#
# RPO's guarantee (Theorem 5.3) compares its policy with any policy $\pi$ of your choice:
#
# $$J(\pi)-J(\hat\pi)\ \lesssim\ \frac{(C^2+1)\,\iota}{\sqrt N},$$
#
# with $C$ the *coverage coefficient* of $\pi$ and $\pi_{base}$ together. What is $C$, and is the bound true?

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa

from bandits.grid import Method, Study
from bandits.learned import Options
from bandits.plots import PALETTE
from bandits.studies import draw_part, plan, run_part
from rpo_theory.coverage import coverage
from rpo_theory.rewards import TabularBox

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## A resistor network
#
# For tables, the data are a graph: responses are nodes, and a pair that is compared with probability $p$ is
# a wire of conductance $p$. $C^2$ is the resistance between $\pi$ and $\pi_{base}$. Three responses in a
# row: 0 - 1 - 2, with a share $w$ of the comparisons between 1 and 2.


# %%
def coefficient(share: float, comparator: list[float], baseline: list[float]) -> float:
    """Coverage of a comparator and a baseline on a line of three responses."""
    law = np.zeros((1, 3, 3))
    law[0, 0, 1], law[0, 1, 2] = 1 - share, share
    found = coverage(
        TabularBox(np.array(10.0)),
        true_reward=np.array([[5.0, 5.0, 5.0]]),
        comparator=np.array([comparator]),
        baseline=np.array([baseline]),
        context_weights=np.ones(1),
        pair_law=law,
    )
    return float(found)


shares = np.geomspace(1e-3, 0.9, 25)
figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
across = [coefficient(w, [1, 0, 0], [0, 0, 1]) for w in shares]
near = [coefficient(w, [1, 0, 0], [0, 1, 0]) for w in shares]
ax.loglog(shares, across, color=PALETTE["orange"], lw=2, label="response 0 against response 2")
ax.loglog(shares, near, color=PALETTE["blue"], lw=2, label="response 0 against response 1")
ax.set_xlabel("share of comparisons between responses 1 and 2")
ax.set_ylabel("coverage coefficient $C$")
ax.set_title("Two wires in a row")
ax.legend(frameon=False)
# %%
w = 0.25
assert abs(coefficient(w, [1, 0, 0], [0, 0, 1]) ** 2 - (1 / w + 1 / (1 - w))) < 1e-9  # in series
assert coefficient(0.0, [1, 0, 0], [0, 0, 1]) == np.inf  # cut

# %% [markdown]
# Whatever hangs off the line, and however badly it was covered, does not matter: only what lies between the
# comparator and the baseline does. That is *partial* coverage.
#
# ## Is the bound true?
#
# We draw bandits whose $C$ is set by a dial, solve RPO at the theorem's $\eta$ and $\beta$, and put the gap
# beside the bound.

# %%
study = Study(
    name="bound",
    methods=[Method(method="rpo", options=Options(baseline="given"))],
    comparisons=[1000, 10_000, 100_000],
    seeds=60,
    design={"actions": 8, "rare": 4, "coverage": [1.2, 2.0, 4.0], "reward_max": 1.0},
)
records = pa.concat_tables([run_part(study, part, draw_part(part))[0] for part in plan(study)])
gap, bound = (np.asarray(records[name]) for name in ("gap", "bound"))
figure, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
for value, colour in zip([1.2, 2.0, 4.0], ("blue", "green", "orange"), strict=True):
    here = np.isclose(np.asarray(records["design.coverage"], float), value)
    ax.loglog(
        bound[here], np.maximum(gap[here], 1e-5), ".", color=PALETTE[colour], label=f"C = {value}"
    )
ends = np.array([bound.min(), bound.max()])
ax.loglog(ends, ends, color="0.5", lw=1)
ax.text(ends[0], ends[0] * 1.3, "gap = bound", color="0.4")
ax.set_xlabel("bound of Theorem 5.3, corrected form (units of reward)")
ax.set_ylabel("gap to the best policy (units of reward)")
ax.set_title("True, and loose by orders of magnitude")
ax.legend(frameon=False)
# %%
violations = int((gap > bound).sum())
print(
    f"{violations} of {len(gap)} draws above the bound; median slack {np.median(bound / np.maximum(gap, 1e-9)):.0f} times"
)
assert violations == 0

# %% [markdown]
# ## Exercise
#
# Where does the slack come from? Replace `bound` by `bound_tight`, which uses the sharpest constant instead
# of $(1+e^{R_{max}})^2$, and let `reward_max` grow to 4.
#
# *Hint: the printed constant grows like $e^{2R_{max}}$, the sharp one like $e^{R_{max}/2}$.*
