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
# # 1. The equivalence of the adversarial problem and the RPO loss
#
# The paper chooses a policy against an adversary, which chooses the reward:
#
# $$\max_\pi\min_{r\in\mathcal R}\phi(\pi,r),\qquad
# \phi(\pi,r)=\eta\,\mathbb E\big[r(x,\pi)-r(x,\pi_{base})-\beta\,KL(\pi\Vert\pi_{ref})\big]+L_D(r).$$
#
# It then shows that this max-min problem need not be solved as such: the same policy minimizes a simple
# loss. We check this on a bandit with two arms, where everything can be drawn as a curve, and then on
# random bandits.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import rpo_theory as rt
from rpo_io import PALETTE

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## Two arms
#
# Arm 0 won 7 of 10 comparisons. The reference policy $\pi_{ref}$ and the baseline policy $\pi_{base}$
# are uniform, and rewards lie between 0 and 2.

# %%
wins = np.array([[[0.0, 7.0], [3.0, 0.0]]])  # wins[x, winner, loser]
problem = rt.Problem.from_wins(wins, beta=0.5, eta=0.4, baseline_policy="reference")
rewards = rt.TabularBox(2.0)

# %% [markdown]
# Only the difference $d = r(0)-r(1)$ matters. For a fixed reward the best policy has a closed form,
# $\pi_r\propto\pi_{ref}\,e^{r/\beta}$ (Lemma 4.1), and $F(r)=\max_\pi\phi(\pi,r)$ is a convex function of $d$.
# The adversary chooses its minimum.

# %%
differences = np.linspace(-2, 2, 401)
tables = np.stack([np.maximum(differences, 0), np.maximum(-differences, 0)], 1)[:, None]
values = np.array([float(rt.minimax_objective(problem, table)) for table in tables])
solution = rt.minimax.solve(problem, rewards)
adversary = np.asarray(solution.reward)
d_star = float(adversary[0, 0] - adversary[0, 1])

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
left.plot(differences, values, color=PALETTE["blue"], lw=2)
left.axvline(d_star, color=PALETTE["orange"], lw=1.5, label=f"the adversary's choice, {d_star:.3f}")
left.axvline(np.log(7 / 3), color="0.6", ls="--", label="maximum likelihood, 0.847")
left.set_xlabel("difference of the rewards, $r(0)-r(1)$")
left.set_ylabel("$F(r)$, nats")
left.set_title("The function that the adversary minimizes")
left.set_ylim(0.55, 2.2)
left.legend(loc="upper right", framealpha=1.0, edgecolor="none")

probabilities = [
    float(rt.gibbs_policy(table, problem.reference_policy, problem.beta)[0, 0]) for table in tables
]
right.plot(differences, probabilities, color=PALETTE["blue"], lw=2)
right.axvline(d_star, color=PALETTE["orange"], lw=1.5)
right.set_xlabel("difference of the rewards, $r(0)-r(1)$")
right.set_ylabel("probability of arm 0")
right.set_title("The best policy against each reward")

# %%
assert abs(d_star - differences[values.argmin()]) < 0.011  # the grid's step
print(f"the policy takes arm 0 with probability {float(solution.policy[0, 0]):.4f}")

# %% [markdown]
# The adversary chose a smaller difference than maximum likelihood: it lowered the advantage of the best
# policy over the baseline, as far as the data allowed.
#
# ## Three routes
#
# We solve the same problem in three independent ways: minimize $F$ over rewards (`minimax`), maximize the
# worst case over policies (`maximin`, Algorithm 1), and minimize the RPO loss over policies (`direct`,
# Algorithm 2).

# %%
routes = {
    "min-max": rt.minimax.solve(problem, rewards),
    "max-min, Algorithm 1": rt.maximin.solve(problem, rewards),
    "RPO loss, Algorithm 2": rt.direct.solve(problem, rewards),
}
for name, route in routes.items():
    print(f"{name:24s} {np.asarray(route.policy)[0]}")
policies = [np.asarray(route.policy) for route in routes.values()]
assert max(np.abs(policy - policies[0]).max() for policy in policies) < 1e-6

# %% [markdown]
# ## A certificate
#
# Two solvers that agree may share a mistake. A *certificate* is independent of the solver: for any policy
# and reward, the duality gap bounds the distance of the pair from the optimum.

# %%
certificate = rt.certify(problem, rewards, solution.policy, solution.reward)
print(
    f"duality gap {float(certificate.duality_gap):.1e}, relative to a value of {values.min():.3f}"
)
assert float(certificate.duality_gap) < 1e-10

# %% [markdown]
# ## Random bandits
#
# Now prompts, responses, policies and data are random, and $\beta$ and $\eta$ vary over four decades.

# %%
from bandits.theorem_check import measure_agreement, plot_agreement
from rpo.report.claims import BARS

records = list(measure_agreement(16, 0, padded_shapes=((20, 30),)))
figure, ax = plt.subplots(figsize=(8, 4.2), layout="constrained")
plot_agreement(records, BARS, ax)

# %%
assert max(record.relative_gap() for record in records) <= BARS["duality gap"]
assert max(record.policy_tv_maximin for record in records) <= BARS["Algorithm 1"]
assert max(record.policy_tv_loss for record in records) <= BARS["RPO loss"]

# %% [markdown]
# ## Exercise
#
# Give arm 0 all ten wins and let $\beta\to 0$. Which difference does the adversary choose, and what does
# DPO (`eta=0`) do? Then remove the box (`rt.Unbounded`).
#
# *Hint: with $\eta=0$ the likelihood pushes $d$ to the bound of the box, and without a box it has no
# minimum. With $\eta>0$ the optimum satisfies $\hat\pi(0)=\pi_{base}(0)+\sigma(-d)/\eta$. Set
# $\hat\pi(0)=1$ and solve for $d$: it is $\log 4$ here, with or without the box.*
