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
# # 7. Which votes matter, and how cautious to be
#
# The minimax policy is a differentiable function of the votes and of the weight $\eta$ of the adversarial term.
# Two questions then have quick answers: which votes does the policy depend on, and which $\eta$ predicts votes
# that it has not seen? We ask them for a small table of votes.

# %%
import csv
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

import rpo_theory as rt
from rpo_io import PALETTE

jax.config.update("jax_enable_x64", True)

with Path("../examples/votes.csv").open(encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
columns = [[row[name] for row in rows] for name in ("context", "winner", "loser")]
counts = [int(row["count"]) for row in rows]
problem = rt.Problem.from_votes(*columns, counts, beta=0.5, eta=0.05)
box = rt.TabularBox(4.0)
contexts = sorted(set(columns[0]))
actions = sorted(set(columns[1]) | set(columns[2]))

# %% [markdown]
# ## Leaving out a vote
#
# The derivative of the policy by a win count predicts what happens when one vote less was cast. The baseline
# policy is that of the winners and the contexts are weighted by their votes, so both change with the votes.

# %%
found = rt.influence(problem, box, baseline="chosen", weights="comparisons")
votes = list(zip(found.context, found.winner, found.loser, strict=True))
predicted = -found.policy

solution = rt.minimax.solve(problem, box)
exact = []
for context, winner, loser in votes:
    wins = np.array(problem.wins)
    wins[context, winner, loser] -= 1.0
    fewer = rt.Problem.from_wins(
        wins, beta=0.5, eta=0.05, reference_policy=problem.reference_policy
    )
    exact.append(rt.minimax.solve(fewer, box).policy - solution.policy)
exact = np.array(exact)
correlation = np.corrcoef(exact.ravel(), predicted.ravel())[0, 1]
assert correlation > 0.9
print(f"correlation {correlation:.4f}")

# %%
_, ax = plt.subplots(figsize=(4.5, 4))
ax.plot(exact.ravel(), predicted.ravel(), "o", color=PALETTE["blue"], alpha=0.6)
ax.axline((0, 0), slope=1, color="0.5", linewidth=1)
ax.set(xlabel="exact change of a probability", ylabel="predicted change")
plt.show()

# %% [markdown]
# The votes that move the policy most:

# %%
size = np.abs(found.policy).sum(axis=(1, 2))
for index in np.argsort(size)[::-1][:3]:
    context, winner, loser = votes[index]
    print(f"{contexts[context]}: {actions[winner]} beats {actions[loser]}, {size[index]:.4f}")

# %% [markdown]
# ## Choosing eta
#
# Every other vote is held out. Along the path of $\eta$ the loss on the kept votes rises and the penalty falls;
# the loss on the held-out votes has a minimum, which `tune_eta` finds with the exact derivative.

# %%
all_wins = np.array(problem.wins)
held_out = np.floor(all_wins / 2.0)
kept = rt.Problem.from_wins(all_wins - held_out, beta=0.5, eta=0.05)
by_votes = rt.tune_eta(kept, box, held_out_wins=held_out)
by_discrepancy = rt.tune_eta(kept, box, delta=0.05)
path = by_votes.path
assert np.all(np.diff(path.data_loss) >= -1e-12)
assert np.all(np.diff(path.penalty) <= 1e-12)

# %%
_, ax = plt.subplots(figsize=(5.5, 3.5))
ax.semilogx(path.eta, path.data_loss, color=PALETTE["blue"], label="kept votes")
ax.semilogx(path.eta, path.held_out_loss, color=PALETTE["orange"], label="held-out votes")
ax.axvline(by_votes.eta, color=PALETTE["orange"], linestyle=":")
ax.axvline(by_discrepancy.eta, color=PALETTE["green"], linestyle="--", label="discrepancy rule")
ax.set(xlabel="eta", ylabel="nats per vote")
ax.legend()
plt.show()

# %% [markdown]
# ## Exercise
#
# Give one of the rare votes a count of 10 and compute the influence again. Does its influence per vote rise or
# fall, and why?
