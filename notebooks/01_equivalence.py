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
# # 1. The equivalence, by hand and by machine
#
# The paper chooses a policy against an adversary that chooses the reward:
#
# $$\max_\pi\min_{r\in\mathcal R}\phi(\pi,r),\qquad
# \phi(\pi,r)=\eta\,\mathbb E\big[r(x,\pi)-r(x,\pi_{base})-\beta\,KL(\pi\Vert\pi_{ref})\big]+L_D(r).$$
#
# It then claims that nobody has to play this game: the same policy minimises a simple loss. We check
# that on a bandit with two arms, where everything is a curve that can be drawn, and then on random
# bandits, where it cannot.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

from rpo_io.figures import PALETTE
from rpo_theory import certificate, direct, maximin, minimax
from rpo_theory.objectives import minimax_objective
from rpo_theory.policies import gibbs_policy
from rpo_theory.rewards import TabularBox
from rpo_theory.types import Problem

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## Two arms
#
# Arm 0 won 7 of 10 comparisons. Both policies that the problem asks for, $\pi_{ref}$ and $\pi_{base}$,
# are uniform. Rewards lie between 0 and 2.

# %%
wins = np.array([[[0.0, 7.0], [3.0, 0.0]]])  # wins[x, winner, loser]
uniform = np.full((1, 2), 0.5)
problem = Problem(np.ones(1), uniform, uniform, wins, beta=np.array(0.5), eta=np.array(0.4))
rewards = TabularBox(np.array(2.0))

# %% [markdown]
# Only the difference $d = r(0)-r(1)$ matters. For a fixed reward the best policy is known in closed form,
# $\pi_r\propto\pi_{ref}\,e^{r/\beta}$ (Lemma 4.1), and $F(r)=\max_\pi\phi(\pi,r)$ is a convex function of $d$.
# Its minimum is where the adversary stops.

# %%
differences = np.linspace(-2, 2, 401)
tables = np.stack([np.maximum(differences, 0), np.maximum(-differences, 0)], 1)[:, None]
values = np.array([float(minimax_objective(problem, table)) for table in tables])
solution = minimax.solve(problem, rewards)
adversary = np.asarray(solution.reward)
d_star = float(adversary[0, 0] - adversary[0, 1])

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
left.plot(differences, values, color=PALETTE["blue"], lw=2)
left.axvline(d_star, color=PALETTE["orange"], lw=1.5, label=f"the adversary's choice, {d_star:.3f}")
left.axvline(np.log(7 / 3), color="0.6", ls="--", label="maximum likelihood, 0.847")
left.set_xlabel("difference of the rewards, $r(0)-r(1)$")
left.set_ylabel("$F(r)$, nats")
left.set_title("What the adversary minimises")
left.set_ylim(0.55, 2.2)
left.legend(loc="upper right", framealpha=1.0, edgecolor="none")

chances = [
    float(gibbs_policy(table, problem.reference_policy, problem.beta)[0, 0]) for table in tables
]
right.plot(differences, chances, color=PALETTE["blue"], lw=2)
right.axvline(d_star, color=PALETTE["orange"], lw=1.5)
right.set_xlabel("difference of the rewards, $r(0)-r(1)$")
right.set_ylabel("probability of arm 0")
right.set_title("The best policy against each reward")

# %%
assert abs(d_star - differences[values.argmin()]) < 0.011  # the grid's step
print(f"the policy takes arm 0 with probability {float(solution.policy[0, 0]):.4f}")

# %% [markdown]
# The adversary chose a smaller difference than maximum likelihood would: it moved the reward towards the
# baseline policy, as far as the data allowed.
#
# ## Three routes
#
# The same problem, solved in three ways that share no step: min over rewards of $F$ (`minimax`), max over
# policies of the worst reward (`maximin`, Algorithm 1), and the RPO loss over policies
# (`direct`, Algorithm 2).

# %%
routes = {
    "min-max": minimax.solve(problem, rewards),
    "max-min, Algorithm 1": maximin.solve(problem, rewards),
    "RPO loss, Algorithm 2": direct.solve(problem, rewards),
}
for name, route in routes.items():
    print(f"{name:24s} {np.asarray(route.policy)[0]}")
policies = [np.asarray(route.policy) for route in routes.values()]
assert max(np.abs(policy - policies[0]).max() for policy in policies) < 1e-6

# %% [markdown]
# ## Why to believe it
#
# Two solvers that agree may share a mistake. A *certificate* shares nothing: for any policy and reward
# the duality gap bounds how far the pair is from optimal, whoever found it.

# %%
proof = certificate.certify(problem, rewards, *solution[:2])
print(f"duality gap {float(proof.duality_gap):.1e}, relative to a value of {values.min():.3f}")
assert float(proof.duality_gap) < 1e-10

# %% [markdown]
# ## Random bandits
#
# Prompts, responses, policies, data, $\beta$ and $\eta$ at random, over four decades.

# %%
from bandits.theorem_check.agreement import measure_agreement
from bandits.theorem_check.plots import plot_agreement
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
# Give arm 0 all ten wins and let $\beta\to 0$. Where does the adversary stop, and what does DPO
# (`eta=0`) do? Then take the box away (`rpo_theory.rewards.Unbounded`).
#
# *Hint: with $\eta=0$ the likelihood pushes $d$ to the wall of the box, and without a box it has no
# minimum. With $\eta>0$ the optimum obeys $\hat\pi(0)=\pi_{base}(0)+\sigma(-d)/\eta$; put $\hat\pi(0)=1$
# and solve for $d$: it is $\log 4$ here, box or no box.*
