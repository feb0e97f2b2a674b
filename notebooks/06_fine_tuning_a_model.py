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
# From preference rows to a policy that `transformers` loads, without a download: the model is a small
# decoder made here. The last section puts SmolLM2, Llama, Mistral, Qwen or Gemma in its place.

# %%
import json
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from llm.plots import plot_runs, read_metrics
from rpo.cli import main

folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## Rows
#
# Sums, with a right and a wrong answer. One row in eight has its labels swapped, as people do.

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
# A command is called from Python as from a shell: `train(...)` below is `rpo train CONFIG --objective.method ...`.


# %%
def train(name: str, model: str, method: str, steps: int) -> list[dict]:
    """Train, and return the lines of ``metrics.jsonl``."""
    config = folder / f"{name}.yaml"
    config.write_text(f"""
name: {name}
model: {{{model}}}
data: {{train: {folder}/rows.jsonl, tokenizer: bytes, max_length: 32, eval_rows: 40}}
objective: {{method: {method}, beta: 0.1, eta: 1.0}}
optimizer: {{learning_rate: 2.0e-3}}
trainer: {{max_steps: {steps}, per_device_train_batch_size: 16, eval_steps: 25}}
""")
    assert main(["train", str(config), "--out", str(folder / name)]) == 0
    return read_metrics(folder / name / "metrics.jsonl")


# %% [markdown]
# ## The reference
#
# The theorem's $\pi_{ref}$ is a model that already answers in the right form: the KL term holds the policy
# near it, so it must be worth being near to. We make one by SFT on the chosen answers, and export it.

# %%
small = "architecture: {vocab_size: 264, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4}"
sft = train("sft", small, "sft", steps=100)
assert main(["export", str(folder / "sft"), "--out", str(folder / "reference")]) == 0
start = sft[-1]["eval_logps/chosen"]
print(f"held-out chosen answers have {start:.2f} nats under the reference")

# %% [markdown]
# ## Two runs
#
# RPO, and DPO beside it: the same rows, the same order, the same start; only $\eta$ differs,
#
# $$-\log\sigma\big(\beta\,[\log\tfrac{\pi(w)}{\pi_{ref}(w)}-\log\tfrac{\pi(l)}{\pi_{ref}(l)}]\big)
# -\eta\beta\log\pi(w),\qquad \eta_{DPO}=0.$$

# %%
reference = f"path: {folder}/reference"
runs = {name.upper(): train(name, reference, name, steps=150) for name in ("rpo", "dpo")}

# %% [markdown]
# ## What happened
#
# Lines are training batches, dots the forty held-out rows.

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
# DPO has the larger margin, and the chosen answers of held-out rows become less likely on the way: its loss
# asks for a difference and does not say where the probability should go. This is *likelihood displacement*.
# RPO, the same loss with a little SFT, loses fewer nats there. It loses some: the SFT term is on the rows of
# training, wrong labels among them. Its adversarial value $F$, which is what the theorem minimises, ends
# lower on held-out rows. With `default_rng(1)`, `(2)` and `(3)` the numbers differ and these orders do not.

# %%
assert last["RPO"]["eval_theory/adversarial_value"] < last["DPO"]["eval_theory/adversarial_value"]

# %% [markdown]
# ## The policy

# %%
assert main(["export", str(folder / "rpo"), "--out", str(folder / "policy")]) == 0
print(sorted(path.name for path in (folder / "policy").iterdir()))
policy = ["--model", str(folder / "policy"), "--tokenizer", "bytes"]
assert main(["generate", *policy, "--prompt", "2+2=", "--max-new-tokens", "3"]) == 0

# %% [markdown]
# ## A real model
#
# The same command takes a folder of Hugging Face weights, `--model.path FOLDER`; the tokenizer and the chat
# template come with it, and `lora_r` in the configuration trains adapters in place of all weights. With such
# a folder in the variable `RPO_MODEL`, and rows in `RPO_ROWS`, the next cell takes four steps of the real
# run that `docs/finetuning.md` describes.

# %%
if "RPO_MODEL" in os.environ:
    real = [
        *("--model.path", os.environ["RPO_MODEL"], "--data.train", os.environ["RPO_ROWS"]),
        *("--data.eval_rows", "4", "--trainer.max_steps", "4", "--trainer.eval_steps", "4"),
    ]
    config = "../configs/rpo_smollm2_hh.yaml"
    assert main(["train", config, *real, "--out", str(folder / "real")]) == 0
    assert np.isfinite(read_metrics(folder / "real" / "metrics.jsonl")[-1]["eval_loss"])

# %% [markdown]
# ## Exercise
#
# Swap more labels, one row in three. What do accuracy and the chosen log-probability do under both methods?
#
# *Hint: the adversary may believe either answer; RPO's policy should become less certain, not more.*
