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
# # 6. Fine-tuning a model
#
# From preference rows to a policy that `transformers` loads. Nothing is downloaded: the model is a small
# decoder with random weights. The last section uses SmolLM2, Llama, Mistral, Qwen or Gemma instead.

# %%
import json
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from llm.plots import plot_runs
from rpo import api

folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## Rows
#
# Each row is a sum with a right and a wrong answer. One row in eight has swapped labels, as noise.

# %%
rng = np.random.default_rng(0)
rows = []
for number in range(240):
    a, b = (int(k) for k in rng.integers(0, 5, 2))
    right, wrong = str(a + b), str(a + b + int(rng.choice([-1, 1, 2])))
    if number % 8 == 0:
        right, wrong = wrong, right
    rows.append({"prompt": f"{a}+{b}=", "chosen": right, "rejected": wrong})
(folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
rows[:3]

# %% [markdown]
# `api.train(CONFIG)` is `rpo train CONFIG` in Python. It returns the finished run with its metrics.


# %%
def train(name: str, model: str, method: str, steps: int) -> list[dict]:
    """Train a model and return its metrics by step."""
    config = folder / f"{name}.yaml"
    config.write_text(f"""
name: {name}
model: {{{model}}}
data: {{train: {folder}/rows.jsonl, tokenizer: bytes, max_length: 32, eval_rows: 40}}
objective: {{method: {method}, beta: 0.1, eta: 1.0}}
optimizer: {{learning_rate: 2.0e-3}}
trainer: {{max_steps: {steps}, per_device_train_batch_size: 16, eval_steps: 25}}
""")
    return api.train(config, out=folder / name).metrics


# %% [markdown]
# ## The reference
#
# The KL term keeps the policy close to $\pi_{ref}$, so the reference should already answer in the right form.
# We train one by SFT on the chosen answers and export it.

# %%
small = (
    "architecture: {vocab_size: 264, hidden_size: 64, intermediate_size: 128, "
    "num_hidden_layers: 2, num_attention_heads: 4}"
)
sft = train("sft", small, "sft", steps=100)
api.export(folder / "sft", out=folder / "reference")
start = sft[-1]["eval_logps/chosen"]
print(f"held-out chosen answers: {start:.2f} nats under the reference")

# %% [markdown]
# ## Two runs
#
# One run with RPO and one with DPO. Rows, order and initial weights are the same; only $\eta$ differs:
#
# $$-\log\sigma\big(\beta\,[\log\tfrac{\pi(w)}{\pi_{ref}(w)}-\log\tfrac{\pi(l)}{\pi_{ref}(l)}]\big)
# -\eta\beta\log\pi(w),\qquad \eta_{DPO}=0.$$

# %%
reference = f"path: {folder}/reference"
runs = {name.upper(): train(name, reference, name, steps=150) for name in ("rpo", "dpo")}

# %% [markdown]
# ## Results
#
# Lines show training batches; dots show the forty held-out rows.

# %%
figure, axes = plt.subplots(2, 2, figsize=(11, 6.6), layout="constrained")
plot_runs(runs, axes.flat, beta=0.1, span=10)
# %%
last = {name: lines[-1] for name, lines in runs.items()}
for name, line in last.items():
    print(
        f"{name}: chosen {line['eval_logps/chosen']:.2f} nats, margin {line['eval_rewards/margins']:.3f}"
    )
assert last["DPO"]["eval_logps/chosen"] < start - 1
assert last["RPO"]["eval_logps/chosen"] > last["DPO"]["eval_logps/chosen"] + 1
assert last["DPO"]["eval_rewards/margins"] > last["RPO"]["eval_rewards/margins"]

# %% [markdown]
# DPO has the larger margin, but the chosen answers of held-out rows become less likely. Its loss only depends
# on a difference of log-probabilities. This is *likelihood displacement*. RPO adds a small SFT term and loses
# fewer nats. It still loses some, because the SFT term uses the training rows, including the swapped ones.
# The adversarial value $F$, which the theorem minimizes, is lower for RPO on held-out rows. The orders are
# the same with `default_rng(1)`, `(2)` and `(3)`.

# %%
assert last["RPO"]["eval_theory/adversarial_value"] < last["DPO"]["eval_theory/adversarial_value"]

# %% [markdown]
# ## The policy

# %%
api.export(folder / "rpo", out=folder / "policy")
print(sorted(path.name for path in (folder / "policy").iterdir()))
api.generate(model=folder / "policy", tokenizer="bytes", prompt="2+2=", max_new_tokens=3)

# %% [markdown]
# ## A real model
#
# The key `model.path` names a folder of Hugging Face weights, with its tokenizer and chat template. `lora_r`
# trains adapters instead of all weights. If the environment variable `RPO_MODEL` names such a folder and
# `RPO_ROWS` a file of rows, the next cell takes four steps of the run in `docs/finetuning.md`.

# %%
if "RPO_MODEL" in os.environ:
    overrides = {
        "model.path": os.environ["RPO_MODEL"],
        "data.train": os.environ["RPO_ROWS"],
        "data.eval_rows": 4,
        "trainer.max_steps": 4,
        "trainer.eval_steps": 4,
    }
    real = api.train("../configs/rpo_smollm2_hh.yaml", overrides, out=folder / "real")
    assert np.isfinite(real.metrics[-1]["eval_loss"])

# %% [markdown]
# ## Exercise
#
# Swap the labels of one row in three. How do accuracy and the chosen log-probability change under both
# methods?
#
# *Hint: either answer is now plausible to the adversary, so RPO's policy should become less certain.*
