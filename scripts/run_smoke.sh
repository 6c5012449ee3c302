#!/usr/bin/env bash
# Train a smoke-sized model for a few steps and generate from it: about 20 seconds on 2 cores.
# Usage: bash scripts/run_smoke.sh [pilot | mid, default pilot]
# Environment: PYTHON (default: python), DATA (default: data/smoke), RUNS (default: runs).
set -euo pipefail
if [[ "${1:-}" == "--help" || "${1:-}" == "-h" ]]; then
  sed -n '2,4p' "$0" | cut -c3-
  exit 0
fi
size="${1:-pilot}"
case "$size" in
  pilot | mid) ;;
  *)
    echo "error: size $size; choose pilot or mid" >&2
    exit 2
    ;;
esac
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-python}"
data="${DATA:-data/smoke}"
run="${RUNS:-runs}/smoke_$size/$(date -u +%Y%m%d-%H%M%S)-$$"

echo "1/3 data in $data"
if [[ ! -f "$data/manifest.json" ]]; then
  "$python" "$here/scripts/data/build_stdlib.py" --output-dir "$data/corpus" --limit-mb 0.5
  "$python" "$here/scripts/data/shard_corpus.py" --corpus "$data/corpus" \
    --tokenizer-path bytes --output-dir "$data"
fi
echo "2/3 train ${size}_smoke for a few steps in $run"
"$python" "$here/train.py" --config-name "${size}_smoke" stream.path="$data" run.dir="$run" \
  model.vocab_size=259 model.dim=96 stream.seq_len=128 stream.batch_size=4 \
  train.steps=20 train.validate_every=10 train.validate_batches=2 schedule.warmup=2
echo "3/3 generate with streamed state"
"$python" -m nl generate "$run" --prompt "Return the " --max-new-tokens 48 --temperature 0.8
echo "done: $run"
