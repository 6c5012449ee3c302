#!/usr/bin/env bash
# Measure nl in turn with nested-learning 0.2.0 and titans-pytorch 0.5.5, and write reports/speed.md.
#
# Builds an environment of its own (artifacts/peers/.venv, not tracked) that sees the packages of
# the checkout's environment, torch included, and the two peers with what they import. They are
# installed without their own dependencies, whose pins contradict ours.
#
# Example: bash benchmarks/peers.sh
#          bash benchmarks/peers.sh --quick --noisy --output artifacts/peers/speed
# PYTHON=<path> names another interpreter than .venv/bin/python. Options: python benchmarks/peers.py
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-.venv/bin/python}
HOME_OF_PEERS=artifacts/peers/.venv
PACKAGES=(
  nested-learning==0.2.0
  titans-pytorch==0.5.5
  assoc-scan==0.0.6
  axial-positional-embedding==0.3.12
  einx==0.4.3
  frozendict==2.5.1
  hyper-connections==0.4.11
  loguru==0.7.3
  pyvers==0.2.3
  rotary-embedding-torch==0.9.1
  tensordict==0.15.3
  torch-einops-utils==0.2.0
  x-transformers==2.31.10
)

if [[ ! -f $HOME_OF_PEERS/ready ]]; then
  command -v uv >/dev/null || { echo "uv is missing: pip install uv" >&2; exit 2; }
  rm -rf "$HOME_OF_PEERS"
  uv venv --quiet --python "$PYTHON" "$HOME_OF_PEERS"
  uv pip install --quiet --python "$HOME_OF_PEERS/bin/python" --no-deps "${PACKAGES[@]}"
  ours=$("$PYTHON" -c "import sysconfig; print(sysconfig.get_paths()['purelib'])")
  own=$("$HOME_OF_PEERS/bin/python" -c "import sysconfig; print(sysconfig.get_paths()['purelib'])")
  echo "$ours" >"$own/checkout.pth"
  touch "$HOME_OF_PEERS/ready"
fi

export PYTHONPATH=$PWD/src OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
exec "$HOME_OF_PEERS/bin/python" benchmarks/peers.py "$@"
