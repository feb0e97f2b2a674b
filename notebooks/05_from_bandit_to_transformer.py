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
# # 5. From a bandit to a transformer
#
# A language model is a policy: a prompt is a context, and a whole response is an action. If all responses
# can be listed, the exact theory applies to a transformer, and we can test whether training finds the
# policy of the theorem. Trainer and theory use the same loss functions, `rpo_theory.losses`.

# %%
import inspect

import matplotlib.pyplot as plt

from llm.finite.minimax_agreement import DECODER_SIZES, train_to_minimax
from llm.plots import plot_minimax_agreement
from llm.train import objective
from rpo_theory import losses

print(inspect.getsource(losses.dpo).split('"""')[-1])
assert "rpo_theory" in inspect.getsource(
    objective
)  # the trainer imports its losses from the theory

# %% [markdown]
# ## The experiment
#
# There are two prompts, and responses of up to three letters from an alphabet of two. Preferences are
# sampled from the Bradley-Terry model. A decoder is trained on *token sequences*, by the training step
# that is also used for SmolLM2 and Mistral, on the loss
#
# $$-\log\sigma\big(\beta\,[\log\tfrac{\pi(w)}{\pi_{ref}(w)}-\log\tfrac{\pi(l)}{\pi_{ref}(l)}]\big)-\eta\beta\log\pi(w).$$
#
# Independently, `rpo_theory.minimax` solves the max-min problem of the same data from win counts, without
# a neural network.

# %%
curves = {}
for size in DECODER_SIZES:
    runs = [train_to_minimax(size, seed=seed) for seed in (0, 2)]
    curves[size] = [(run.steps, run.variation) for run in runs]

figure, ax = plt.subplots(figsize=(8, 4.2), layout="constrained")
plot_minimax_agreement(curves, ax)

# %%
for name, runs in curves.items():
    print(f"{name}: {', '.join(f'{variation[-1]:.1e}' for _, variation in runs)}")
assert max(variation[-1] for _, variation in curves["large"]) < 1e-4
assert min(variation[-1] for _, variation in curves["small"]) > 0.1

# %% [markdown]
# After training, the large decoder **is** the minimax policy, to the precision of the optimizer. The small
# decoder, whose hidden states have two dimensions, is not, and more training does not help: it cannot
# represent every policy, and the theorem does not apply to a class without the Gibbs policies
# ([notebook 3](03_counter_examples.ipynb)).
#
# ## What overoptimization looks like
#
# The same kind of transformer is trained on data in which some bad responses won their only comparison.

# %%
from bandits.theorem_check.plots import plot_training
from llm.config import ObjectiveConfig
from llm.finite.overoptimization import make_toy_problem, train_on_toy_problem

toy, trained = make_toy_problem(0), {}
for name, config in {
    "DPO": ObjectiveConfig(method="dpo", beta=0.1),
    "RPO": ObjectiveConfig(method="rpo", beta=0.1, eta=0.1),
}.items():
    curve = train_on_toy_problem(toy, config, steps=300, measure_every=15)
    trained[name] = (curve.steps, curve.chosen, curve.true_reward)
figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
plot_training(trained, list(axes))

# %%
assert trained["DPO"][2].max() - trained["DPO"][2][-1] > 0.2  # the reward of DPO falls again
assert trained["RPO"][2][-1] > trained["DPO"][2][-1] + 0.3

# %% [markdown]
# ## Exercise
#
# Halve $\eta$ until RPO overoptimizes as well. How does this $\eta$ depend on the number of comparisons of
# the good responses?
#
# *Hint: at the optimum, the probability of a response exceeds that under the baseline policy by at most
# $W/(\eta N)$, where $W$ is its number of wins.*
