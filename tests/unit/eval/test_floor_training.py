"""A small network comes within 0.02 nats of the exact predictor, and never below it."""

from __future__ import annotations

import json
from pathlib import Path

from nl.assembly import launch
from nl.config.hydra import compose


def test_a_gru_comes_close_to_the_exact_predictor(tmp_path: Path) -> None:
    changes = ["model.block=gru", "model.dim=48", "model.layers=1", "model.mlp_hidden=48"]
    changes += ["train.steps=100", "optim.lr=5e-3", "stream.window=24", "stream.batch_size=128"]
    changes += ["stream.components=[mess3:0.05:0.85,mess3:0.15:0.6]", "stream.library=[]"]
    changes += ["stream.test_size=256", "seed=1", f"run.root={tmp_path}"]
    home = launch(compose("pilot_smoke", ["experiment=ergodic/synthetic", *changes]))
    page = json.loads((home / "artifacts/evals/floor.json").read_text())
    found = page["details"]["on"]["all"]
    assert found["kl"]["mean"] < 0.02
    assert abs(found["bayes_xe"]["mean"] - 0.975) < 4 * found["bayes_xe"]["stderr"]
    gap = found["excess"]["mean"] - found["kl"]["mean"]
    assert abs(gap) < 4 * found["excess"]["stderr"], "two estimates of one number"
    assert not page["details"]["on"]["alarm"]["fired"]
    values = found["kl"]["at"]
    assert min(values) >= 0
    assert sum(values[-6:]) > sum(values[:6]), "what is far back is harder to keep"
