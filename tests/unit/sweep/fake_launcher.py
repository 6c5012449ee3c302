"""A launcher without torch: counts steps, saves after each, goes on where it stopped.

Told as train.py is (key=value): run.dir, seed, steps, wait (seconds per step), hash, and fail:
``always``, ``once`` (its first attempt), ``refuse`` (exit code 2). Every start is a line of
``<run.dir>.starts``, so that a test can see who ran what twice.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from nl.run import RecordWriter, RunDir
from nl.run.files import write_json

told = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
home = Path(told["run.dir"].strip("'"))
steps, wait, seed = int(told["steps"]), float(told["wait"]), int(told["seed"])
with Path(f"{home}.starts").open("a") as file:
    file.write(f"{os.getpid()}\n")
attempts = len(Path(f"{home}.starts").read_text().splitlines())
stopped: list[bool] = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
if told.get("fail") == "refuse":
    print("steps: -1; must be >= 1.")
    raise SystemExit(2)
if RunDir.holds_run(home):
    run = RunDir.open(home)
    run.lock()
else:
    run = RunDir.create(home)
    run.config.write_text("{}\n")
    write_json(run.meta, {"config_hash": told["hash"], "started": time.time()})
state = home / "checkpoints" / "state.json"
step = json.loads(state.read_text())["step"] if state.is_file() else 0
try:
    while step < steps:
        time.sleep(wait)
        if told.get("fail") == "always" or (told.get("fail") == "once" and attempts == 1):
            raise ValueError("the loss is not a number")
        step += 1
        write_json(state, {"step": step}, durable=False)
        run.write_status("running", step, steps)
        if stopped:
            run.write_status("stopped", step, steps)
            raise SystemExit(143)
except ValueError as error:
    record = {"type": "ValueError", "message": str(error), "traceback_tail": "line 1\nline 2"}
    run.write_status("failed", step, steps, error=record)
    raise SystemExit(1) from None
rows = RecordWriter(run.metrics)
rows.append({"step": steps, "split": "val", "loss": 1.0 / (1 + seed), "accuracy": 0.5})
rows.close()
write_json(
    run.summary,
    {
        "final": {"val/loss": 1.0 / (1 + seed)},
        "best": None,
        "steps": steps,
        "tokens": 10 * steps,
        "seconds": steps * wait,
        "parameters": 7,
        "evals": [],
    },
)
run.write_status("done", steps, steps)
