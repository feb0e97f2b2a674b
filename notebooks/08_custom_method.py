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
# # 8. A method of your own
#
# A paper compares its method with others, on problems of its choice. Here the method and the problem are two Python
# functions; the study runs both beside the built-in ones. The same functions work from a YAML file, as
# `module:function`.

# %%
import tempfile
from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import bandits
from rpo import api

folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The method
#
# It names what it wants to know: the win counts, the reference policy and $\beta$. What has a default value is an
# option. This one trusts a response less if it was rarely compared.


# %%
def lower_bound(wins, reference, beta, *, width=1.0):
    won = wins.sum(axis=2) + 0.5
    lost = wins.sum(axis=1) + 0.5
    reward = jnp.log(won / lost) - width * jnp.sqrt(1 / won + 1 / lost)
    logits = jnp.log(reference) + reward / beta
    weights = jnp.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


# %% [markdown]
# ## The problem
#
# A function returns the tables of a bandit. Two good responses are compared often, a third one almost never; its reward
# is different for every seed. The data are drawn and labeled by the study.


# %%
def rare_rival(seed):
    third = np.random.default_rng(seed).uniform(-1.0, 0.5)
    return {
        "true_reward": [[0.5, 0.3, third]],
        "behavior_policy": [[0.5, 0.49, 0.01]],
        "reward_max": 2.0,
    }


# %% [markdown]
# ## The study
#
# Functions stand for themselves. Options go into a `MethodConfig`.

# %%
study = bandits.StudyConfig(
    name="mine",
    methods=[
        bandits.MethodConfig(method="rpo", options={"baseline": "data_marginal"}),
        "two_stage",
        lower_bound,
        bandits.MethodConfig(method=lower_bound, label="twice as wide", options={"width": 2.0}),
    ],
    environments=[rare_rival],
    comparisons=[100, 300, 1000, 3000],
    seeds=200,
    eta=[0.05],
)
result = api.study(study, out=folder / "mine")

# %% [markdown]
# A fit that raises, or returns no distribution, would have the status `FAILED` and a message. Here all went well.

# %%
records = result.records.to_pylist()
assert {row["status"] for row in records} == {"SOLVED"}

# %%
_, ax = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
result.plot(ax=ax)

# %% [markdown]
# ## How far from the best possible?
#
# On two arms the smallest worst-case regret of *any* method is known exactly, by linear programming. A decision rule is
# a function of the data, so that a method of one's own has a place in this list. A ratio of 1 cannot be improved.

# %%
rules = [bandits.RuleConfig(method=name, eta=0.0) for name in ("dpo", "behavior_cloning")]
config = bandits.MinimaxRegretConfig(
    name="arms",
    methods=rules,
    comparisons=[20],
    margins=[0.1, 0.3, 1.0, 2.0],
    pair_distribution=[[0.75, 0.25], [0.0, 0.0]],
    reward_max=2.0,
)
minimax = bandits.run_minimax_regret(config)
for row in minimax.records.to_pylist():
    print(f"{row['label']:20s} {row['worst_case_regret']:.3f}  ratio {row['ratio']:.2f}")

# %% [markdown]
# ## Exercise
#
# Write a method that plays the response with the most wins, and see where its curve crosses that of `lower_bound`. Then
# move the two functions into a file and run the study from a YAML file:
# [Add a method](../docs/howto/add_method.md) and [Add an environment](../docs/howto/add_environment.md) show how.
