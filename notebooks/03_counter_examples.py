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
# A theorem is understood when it is known what it needs. Theorem 5.6, that the max-min and the min-max
# have the same policy, needs a *convex* class of rewards and a policy class that holds all Gibbs
# policies. We take one away at a time, and see the two formulations part by a gap that is known before.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

from bandits.theorem_check.negative_controls import solve_negative_controls
from bandits.theorem_check.plots import plot_negative_controls
from rpo_io.figures import PALETTE

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## Two rewards and nothing between them
#
# Three arms, no data at all. Nature has one of two rewards, $(1, 0, .6)$ or $(0, 1, .6)$: one of the first
# two arms is great and the other worthless, and the third is good for certain. $\mathcal R$ is these two
# points: not convex.
#
# Who moves first matters now. If the policy moves first (max-min), it must fear both and takes the third
# arm. If the adversary moves first (min-max), it has to pick a reward, and the policy that answers it
# walks into arm 0 or 1 with confidence.

# %%
rewards = np.array([[1.0, 0.0, 0.6], [0.0, 1.0, 0.6]])
beta, reference = 0.1, np.full(3, 1 / 3)


def gibbs(reward: np.ndarray) -> np.ndarray:
    weight = reference * np.exp(reward / beta)
    return weight / weight.sum()


def worst_case(policy: np.ndarray) -> float:
    """What the policy gets from the worse of the rewards, less the KL price, per unit of eta."""
    divergence = np.sum(policy * np.log(np.maximum(policy, 1e-300) / reference))
    return float((rewards @ policy - rewards[:, 2]).min() - beta * divergence)


shares = np.linspace(0, 1, 201)  # of the third arm; the first two alike, as symmetry demands
first = np.array([worst_case(np.array([(1 - s) / 2, (1 - s) / 2, s])) for s in shares])
max_min = first.max()
min_max = max(beta * np.log(np.sum(reference * np.exp(r / beta))) - r[2] for r in rewards)
answer = gibbs(rewards[0])

figure, ax = plt.subplots(figsize=(7.2, 4), layout="constrained")
ax.plot(shares, first, color=PALETTE["blue"], lw=2, label="worst case of a symmetric policy")
ax.axhline(max_min, color=PALETTE["blue"], ls=":", lw=1.5)
ax.axhline(min_max, color=PALETTE["orange"], ls=":", lw=1.5)
ax.plot(answer[2], worst_case(answer), "o", color=PALETTE["orange"], label="the min-max policy")
ax.text(0.02, max_min + 0.015, f"max min = {max_min:.3f}", color=PALETTE["blue"])
ax.text(0.02, min_max + 0.015, f"min max = {min_max:.3f}", color=PALETTE["orange"])
ax.set_ylim(-0.8, 0.42)
ax.set_xlabel("probability of the third arm")
ax.set_ylabel("value per unit of $\\eta$")
ax.set_title("Two rewards: who moves first matters")
ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 0.12))

# %%
gap = min_max - max_min
print(f"gap {gap:.3f}; known in advance for beta = 0.1: 0.347")
assert abs(gap - 0.347) < 2e-3

# %% [markdown]
# Six problems, each with the gap that is known without the solvers. The first four are the two rewards. In
# the fifth, rewards are one sigmoid neuron with weights on a circle: what a reward *network* is in small. In
# the sixth the class of rewards is convex, and the class of policies holds only two.

# %%
controls = solve_negative_controls()
figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
plot_negative_controls(controls, ax)

# %%
for control in controls:
    assert abs(control.duality_gap - control.expected) < 1e-3  # expected has three digits

# %% [markdown]
# ## Putting convexity back
#
# Give the adversary the segment between the two rewards. In the middle, $(.5, .5, .6)$, there is nothing
# to be confident about: the gap closes.

# %%
mixed = [t * rewards[0] + (1 - t) * rewards[1] for t in np.linspace(0, 1, 201)]
hull = min(beta * np.log(np.sum(reference * np.exp(r / beta))) - r[2] for r in mixed)
print(f"over the segment min max = {hull:.4f}, max min = {max_min:.4f}")
assert abs(hull - max_min) < 1e-3

# %% [markdown]
# ## What this means for a language model
#
# A reward that a network can represent is not a convex class. The theorem covers it only as far as the
# policy class can be treated as all policies ([notebook 5](05_from_bandit_to_transformer.ipynb) measures
# how far that is).
#
# ## Exercise
#
# Where does the gap go as $\beta\to 0$, and as $\beta\to\infty$? Draw it.
#
# *Hint: for small $\beta$ the min-max policy has no doubt, and the gap tends to $1 - .6$. For large $\beta$
# the policy cannot afford to leave
# $\pi_{ref}$, whoever moves first.*
