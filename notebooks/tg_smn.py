# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Task streams, sparse experts, controllers
#
# A language model with many small experts reads one task after another; a controller turns how many
# experts read a token, how much is replayed and how noisy the routers are. First one governed run
# with all its pictures, then a small grid of variants, ablations, numbers of experts and seeds.
#
# No network, no GPU: two to three minutes on two cores. Everything here is a command line, too:
# `docs/systems/tgsmn.md`. On Colab: `!pip install -q -e .` in the checkout first.

# %%
import os
import subprocess
import sys
from pathlib import Path

import yaml

import nl
from nl.cli import main
from nl.config.hydra import compose
from nl.report import task_figures as figures
from nl.report.frames import read_run

# The root of the checkout: from here upwards.
here = Path.cwd()
ROOT = next(p for p in (here, *here.parents) if (p / "configs" / "pilot_smoke.yaml").is_file())
os.chdir(ROOT)

# %% [markdown]
# Sizes. `NL_NOTEBOOK` may hold other values as YAML, so that a test can run all of this smaller.

# %% tags=["parameters"]
SIZES = {
    "data": "data/notebook",
    "out": "runs/tg_smn_notebook",
    "tasks": 5,
    "steps": 24,  # of a task
    "dim": 64,
    "layers": 2,
    "experts": 32,
    "grid": {},  # keys of the grid's runs
    "seeds": 3,
}

# %%
SIZES |= yaml.safe_load(os.environ.get("NL_NOTEBOOK", "{}"))
DATA, OUT = Path(SIZES["data"]), Path(SIZES["out"])


def show(figure):
    """Write a picture and its numbers; show it where there is something to show it on."""
    path = figures.save(figure, OUT / "figures")
    if "ipykernel" in sys.modules:
        from IPython.display import Image, display

        display(Image(filename=str(path)))
    else:
        print(path)


# %% [markdown]
# ## Text
#
# Two domains, prose and code, from this Python's own library; documents are hashed into train, val
# and test. What is there already is kept.

# %%
if not (DATA / "manifest.json").is_file():
    sample = {"PYTHON": sys.executable, "LIMIT_MB": "1", "VOCAB_SIZE": "512"}
    command = ["bash", "scripts/data/run_sample.sh", str(DATA)]
    subprocess.run(command, env=os.environ | sample, check=True, stdout=subprocess.DEVNULL)
vocabulary = yaml.safe_load((DATA / "manifest.json").read_text())["tokenizer"]["vocab_size"]
print(f"{DATA}: {vocabulary} tokens")

# %% [markdown]
# ## One governed run
#
# Every task has a permutation of the vocabulary of its own. Signals are measured on held-out rows
# around every second step; a small recurrent policy reads them and learns, while the model does,
# which knobs keep the losses on this task and the earlier ones falling.

# %%
shared = [
    f"stream.path={DATA}",
    f"model.vocab_size={vocabulary}",
    f"model.dim={SIZES['dim']}",
    f"model.layers={SIZES['layers']}",
    "stream.seq_len=64",
    "stream.batch_size=8",
    "optim.lr=3e-3",
    "train.validate_every=0",
    "checkpoint.keep=0",
    "checkpoint.export=false",
    "logging.every=1",
]
governed = [
    "experiment=tgsmn/sparse_k2",
    "stream=tasks",
    "stream.vocabulary=unique",
    f"stream.tasks={SIZES['tasks']}",
    f"stream.steps={SIZES['steps']}",
    f"train.steps={SIZES['tasks'] * SIZES['steps']}",
    f"checkpoint.every={SIZES['steps']}",
    "stream.capacity=2000",
    f"model.experts.count={SIZES['experts']}",
    "model.experts.groups=4",
    "model.experts.k_max=4",
    "model.experts.noise=0.3",
    "signals.every=2",
    "+controller=gru",
    "controller.every=2",
    "controller.rollout=8",
    "controller.ranges.experts_k=[1,4]",
    "controller.ranges.replay=[0,0.5]",
    "controller.ranges.router_noise=[0,0.5]",
    "controller.ranges.router_temperature=[0.7,1.3]",
    "+evals.tasks={kind: task_losses}",
]
place = OUT / "governed"
again = ["resume=auto"] if place.exists() else []
nl.launch(compose("pilot_smoke", [*governed, *shared, f"run.dir={place}", *again]))
run = read_run(place)

# %% [markdown]
# Loss in training, and on held-out rows of the current and of earlier tasks. Lines are boundaries.

# %%
show(figures.loss_curves(run))

# %% [markdown]
# R: the loss on every task (columns) before training and after every task (rows). Below the
# diagonal is what was kept, above it what was known before.

# %%
show(figures.matrix_map(run))
show(figures.task_curves(run))

# %%
for figure in figures.forgetting_curves(run):
    show(figure)
for name, value in figures.matrix_of(run).metrics.items():
    print(f"{name:20} {value:.4f}" if value is not None else f"{name:20} -")

# %% [markdown]
# Where the controller set the knobs, and what each turn was paid.

# %%
for figure in figures.knob_curves(run):
    show(figure)

# %% [markdown]
# Signals: how far steps move the predictions, and which share of the improvement that a move of
# this size allows they make. How often eta is above 1 says how far that bound can be trusted.

# %%
for figure in figures.signal_curves(run):
    show(figure)

# %% [markdown]
# Experts: how many a batch uses, and which ones the tasks use after the last of them.

# %%
show(figures.expert_curve(run))
show(figures.expert_maps(run))

# %% [markdown]
# Weights of every task's end are on disk; any of them is a model.

# %%
first = nl.load_model(place / "checkpoints" / f"step_{SIZES['steps']:06d}")
print(f"{sum(p.numel() for p in first.parameters()):,} parameters")

# %% [markdown]
# ## The grid
#
# The shipped grid (`configs/sweep/tgsmn_grid.yaml`) with fewer variants and environments, at a
# size for two cores. It can be stopped and called again; what is done is kept.

# %%
grid = yaml.safe_load(Path("configs/sweep/tgsmn_small.yaml").read_text())
grid["global_overrides"] |= {"stream.path": str(DATA), "model.vocab_size": vocabulary}
grid["global_overrides"] |= SIZES["grid"]
grid["n_seeds"] = SIZES["seeds"]
(OUT / "grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))

# %%
sweep = str(OUT / "grid")
code = main(
    ["sweep", str(OUT / "grid.yaml"), "--output", sweep, "--backend", "warm", "--slots", "2"]
)
assert code == 0, "a run of the grid failed; its log says why"
assert main(["report", sweep, "--legacy-csv"]) == 0

# %% [markdown]
# Perplexity on test windows and forgetting over the number of experts, a line per variant; bands
# are 95 % intervals over seeds.

# %%
rows = figures.read_grid(Path(sweep) / "legacy")
environment = str(rows[0]["env"])
show(figures.scaling(rows, environment, "final_test_ppl"))
show(figures.scaling(rows, environment, "avg_forgetting_ppl"))

# %%
show(figures.trade_off(rows, environment))
for row in rows:
    print(f"{row['exp_name']:55} ppl {row['final_test_ppl']:8.2f} lost {row['forgetting']:7.4f}")
