"""run_sample.sh in a bare clone without a network: counts of every stage, seconds, same bytes.

python benchmarks/data_sample.py --output artifacts/data/sample.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nl.data.files import write_json

ROOT = Path(__file__).resolve().parents[1]


def digests(data: Path) -> str:
    """One digest over every shard and the tokenizer."""
    files = sorted([*data.glob("*/*/*.bin"), data / "tokenizer.model"])
    rows = [f"{f.relative_to(data)} {hashlib.sha256(f.read_bytes()).hexdigest()}" for f in files]
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def sample(clone: Path, out: Path, workers: int) -> float:
    """Seconds of one call of run_sample.sh; the network is cut off where this machine allows it."""
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "PYTHONPATH": str(clone / "src"),
        "WORKERS": str(workers),
    }
    command = ["bash", "scripts/data/run_sample.sh", str(out)]
    if can_unshare():
        command = ["unshare", "--net", *command]
    start = time.perf_counter()
    subprocess.run(command, cwd=clone, env=environment, check=True)
    return time.perf_counter() - start


def can_unshare() -> bool:
    """Whether a process without a network can be made."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--net", "true"], check=False).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("artifacts/data/sample.json"))
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        first = sample(clone, clone / "data/stdlib", 1)
        log = json.loads((clone / "data/stdlib/mixture_log.json").read_text())
        again = sample(clone, clone / "data/stdlib", 1)
        two = sample(clone, clone / "data/two", 2)
        same = digests(clone / "data/stdlib") == digests(clone / "data/two")
        found = {
            "command": "python benchmarks/data_sample.py",
            "machine": {
                "python": platform.python_version(),
                "platform": platform.platform(),
                "cpus": os.cpu_count(),
            },
            "network": "cut off (unshare --net)" if can_unshare() else "not cut off",
            "seconds": round(first, 1),
            "seconds_when_up_to_date": round(again, 1),
            "seconds_two_workers": round(two, 1),
            "same_bytes_with_two_workers": same,
            "rows": log["stats"],
        }
    write_json(a.output, found)
    print(
        f"{a.output}: {first:.1f} s, {again:.1f} s when up to date, 2 workers {two:.1f} s, {same}"
    )


if __name__ == "__main__":
    main()
