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
# decoder made here. With `--model.path FOLDER` the same cells train SmolLM2, Llama, Mistral, Qwen or Gemma.

# %%
import json
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
# ## A run
#
# RPO, and DPO beside it: the same rows, the same order, the same start; only $\eta$ differs.

# %%
(folder / "run.yaml").write_text(f"""
name: rpo
model:
  architecture: {{vocab_size: 264, width: 64, hidden_units: 128, n_layers: 2, n_heads: 4}}
data: {{train: {folder}/rows.jsonl, tokenizer: bytes, max_length: 32, eval_rows: 40}}
objective: {{method: rpo, beta: 0.1, eta: 1.0}}
optimizer: {{learning_rate: 2.0e-3}}
trainer: {{max_steps: 150, per_device_train_batch_size: 16, eval_steps: 25}}
""")
config = str(folder / "run.yaml")
assert main(["train", config, "--out", str(folder / "rpo")]) == 0
assert main(["train", config, "--objective.method", "dpo", "--out", str(folder / "dpo")]) == 0

# %% [markdown]
# ## What happened

# %%
figure, axes = plt.subplots(2, 2, figsize=(11, 6.6), layout="constrained")
runs = {name.upper(): read_metrics(folder / name / "metrics.jsonl") for name in ("rpo", "dpo")}
plot_runs(runs, axes.flat, beta=0.1, span=10)
# %%
last = {name: lines[-1] for name, lines in runs.items()}
for name, line in last.items():
    print(
        f"{name}: chosen {line['eval_logps/chosen']:.2f} nats, margin {line['eval_rewards/margins']:.3f}"
    )
assert last["RPO"]["eval_logps/chosen"] > last["DPO"]["eval_logps/chosen"] + 1

# %% [markdown]
# Both methods start from a model that knows nothing, so that both make the chosen answers more likely. DPO
# has the larger margin, most of it because it pushes the rejected answers down: nothing in its loss says
# where that probability should go. RPO, the same loss with a little SFT, sends more of it to the chosen
# answers, and its adversarial value $F$ on held-out rows (dots) is lower throughout.
#
# ## The policy

# %%
assert main(["export", str(folder / "rpo"), "--out", str(folder / "policy")]) == 0
print(sorted(path.name for path in (folder / "policy").iterdir()))
command = [
    "generate",
    "--model",
    str(folder / "policy"),
    "--tokenizer",
    "bytes",
    "--prompt",
    "2+2=",
]
assert main([*command, "--max-new-tokens", "3"]) == 0

# %% [markdown]
# ## Exercise
#
# Swap more labels, one row in three. What do accuracy and the chosen log-probability do under both methods?
#
# *Hint: the adversary may believe either answer; RPO's policy should become less certain, not more.*
