#!/usr/bin/env bash
# Two CPU ranks of train_dist.py on mid_smoke beside one process; stopped, resumed, compared.
# Usage: bash scripts/run_cpu_ddp_smoke.sh [output directory, default runs/ddp_smoke]
# Environment: PYTHON (default: python), DATA (default: data/smoke), STEPS (default: 12).
set -euo pipefail
if [[ "${1:-}" == "--help" || "${1:-}" == "-h" ]]; then
  sed -n '2,4p' "$0" | cut -c3-
  exit 0
fi
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
out="${1:-runs/ddp_smoke}"
python="${PYTHON:-python}"
data="${DATA:-data/smoke}"
steps="${STEPS:-12}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

echo "1/5 data in $data"
if [[ ! -f "$data/manifest.json" ]]; then
  "$python" "$here/scripts/data/build_stdlib.py" --output-dir "$data/corpus" --limit-mb 0.5
  "$python" "$here/scripts/data/shard_corpus.py" --corpus "$data/corpus" \
    --tokenizer-path bytes --output-dir "$data"
fi
rm -rf "$out"
mkdir -p "$out"
options=(--config-name mid_smoke stream.path="$data" model.vocab_size=259 model.dim=96
  stream.seq_len=128 train.device=cpu train.steps="$steps" train.validate_every="$steps"
  train.validate_batches=2 schedule.warmup=2 logging.every=1)
two() {
  "$python" -W ignore -m torch.distributed.run --nproc_per_node=2 --rdzv-backend=c10d \
    --rdzv-endpoint=localhost:0 "$here/train_dist.py" "${options[@]}" "$@"
}

echo "2/5 one process"
"$python" "$here/train.py" "${options[@]}" run.dir="$out/one"
echo "3/5 two ranks"
two run.dir="$out/two"
echo "4/5 two ranks, told to stop on the way"
two run.dir="$out/parts" >"$out/stopped.log" 2>&1 &
ranks=$!
until [[ -s "$out/parts/metrics.jsonl" ]]; do
  if ! kill -0 "$ranks" 2>/dev/null; then
    cat "$out/stopped.log" >&2
    echo "error: the ranks ended before their first step" >&2
    exit 1
  fi
  sleep 0.1
done
kill -TERM "$("$python" -c "import json, sys; print(json.load(open(sys.argv[1]))['pid'])" "$out/parts/status.json")"
wait "$ranks" || true # torchrun ends with 1 whatever its ranks end with
grep "saved; continue" "$out/stopped.log"
echo "5/5 resume"
two run.dir="$out/parts" resume=auto
"$python" "$here/scripts/checks/ddp_table.py" "$out"
