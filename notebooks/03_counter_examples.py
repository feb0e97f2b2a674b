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
# # 3. Where the theorem fails
#
# Theorem 5.6 says that max-min and min-max have the same policy. It needs a *convex* class of rewards and a
# class of policies that contains all Gibbs policies. We remove these assumptions one at a time. The two
# formulations then differ by a gap that is known in advance.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

from bandits.theorem_check import plot_negative_controls, solve_negative_controls
from rpo_io import PALETTE

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## Two rewards and nothing between them
#
# There are three arms and no data. The true reward is $(1, 0, .6)$ or $(0, 1, .6)$: one of the first two arms
# is very good and the other is worthless, while the third is good in either case. $\mathcal R$ consists of these
# two points, so it is not convex.
#
# Now the order of the players matters. If the policy moves first (max-min), it must prepare for both rewards and
# prefers the third arm. If the adversary moves first (min-max), it must pick one reward, and the best policy
# against it puts its weight on arm 0 or arm 1.

# %%
rewards = np.array([[1.0, 0.0, 0.6], [0.0, 1.0, 0.6]])
beta, reference = 0.1, np.full(3, 1 / 3)


def gibbs(reward: np.ndarray) -> np.ndarray:
    weight = reference * np.exp(reward / beta)
    return weight / weight.sum()


def worst_case(policy: np.ndarray) -> float:
    """Return the value of a policy under the worse reward, minus the KL term, per unit of eta."""
    divergence = np.sum(policy * np.log(np.maximum(policy, 1e-300) / reference))
    return float((rewards @ policy - rewards[:, 2]).min() - beta * divergence)


shares = np.linspace(0, 1, 201)  # of the third arm; by symmetry the other two are equal
values = np.array([worst_case(np.array([(1 - s) / 2, (1 - s) / 2, s])) for s in shares])
max_min = values.max()
min_max = max(beta * np.log(np.sum(reference * np.exp(r / beta))) - r[2] for r in rewards)
answer = gibbs(rewards[0])

figure, ax = plt.subplots(figsize=(7.2, 4), layout="constrained")
ax.plot(shares, values, color=PALETTE["blue"], lw=2, label="worst case of a symmetric policy")
ax.axhline(max_min, color=PALETTE["blue"], ls=":", lw=1.5)
ax.axhline(min_max, color=PALETTE["orange"], ls=":", lw=1.5)
ax.plot(answer[2], worst_case(answer), "o", color=PALETTE["orange"], label="the min-max policy")
ax.text(0.02, max_min + 0.015, f"max min = {max_min:.3f}", color=PALETTE["blue"])
ax.text(0.02, min_max + 0.015, f"min max = {min_max:.3f}", color=PALETTE["orange"])
ax.set_ylim(-0.8, 0.42)
ax.set_xlabel("probability of the third arm")
ax.set_ylabel("value per unit of $\\eta$")
ax.set_title("Two rewards: the order of the players matters")
ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 0.12))

# %%
gap = min_max - max_min
print(f"gap {gap:.3f}; known in advance for beta = 0.1: 0.347")
assert abs(gap - 0.347) < 2e-3

# %% [markdown]
# The next figure shows six problems whose gap is known without the solvers. The first four are the two rewards at
# four values of $\beta$. In the fifth, the rewards are one sigmoid neuron with weights on a circle, the smallest
# reward *network*. In the sixth, the class of rewards is convex, but the class of policies has only two members.

# %%
controls = solve_negative_controls()
figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
plot_negative_controls(controls, ax)

# %%
for control in controls:
    assert abs(control.duality_gap - control.expected) < 1e-3  # expected has three digits

# %% [markdown]
# ## Restoring convexity
#
# Let the adversary choose from the segment between the two rewards. At its midpoint, $(.5, .5, .6)$, neither of
# the first two arms is attractive, and the gap closes.

# %%
mixed = [t * rewards[0] + (1 - t) * rewards[1] for t in np.linspace(0, 1, 201)]
hull = min(beta * np.log(np.sum(reference * np.exp(r / beta))) - r[2] for r in mixed)
print(f"over the segment min max = {hull:.4f}, max min = {max_min:.4f}")
assert abs(hull - max_min) < 1e-3

# %% [markdown]
# ## What this means for a language model
#
# The rewards that a network can represent are not a convex class. The theorem applies only as far as the network
# can represent all policies; [notebook 5](05_from_bandit_to_transformer.ipynb) measures how far that is.
#
# ## Exercise
#
# What is the limit of the gap as $\beta\to 0$, and as $\beta\to\infty$? Draw it.
#
# *Hint: for small $\beta$ the min-max policy puts all its weight on one arm, and the gap tends to $1 - .6$. For
# large $\beta$ the policy stays at $\pi_{ref}$ in either order of the players.*
