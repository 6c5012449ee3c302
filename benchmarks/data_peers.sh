#!/usr/bin/env bash
# Measure the data layer in turn with sentencepiece, litdata and a plain torch DataLoader.
#
# Builds an environment of its own (artifacts/data/.venv, not tracked) that sees the packages of the
# checkout's environment, torch included, and litdata with what it imports.
#
# Example: bash benchmarks/data_peers.sh
#          bash benchmarks/data_peers.sh --quick --output artifacts/data/quick.json
# PYTHON=<path> names another interpreter than .venv/bin/python. Options: benchmarks/data_rates.py
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-.venv/bin/python}
HOME_OF_PEERS=artifacts/data/.venv
PACKAGES=(
  litdata==0.2.76
  lightning-utilities==0.15.3
  boto3==1.43.123
  botocore==1.43.123
  jmespath==1.1.0
  obstore==0.12.1
  s3transfer==0.19.3
  tifffile==2026.3.3
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

export PYTHONPATH=$PWD/src OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1
exec "$HOME_OF_PEERS/bin/python" benchmarks/data_rates.py "$@"
