#!/usr/bin/env bash
# The main job end to end on the embedded corpus: data, tokenizer, training that is killed and
# resumed, evaluation, forgetting, generation, report. No network, two CPU cores, minutes.
# Usage: bash scripts/run_e2e_smoke.sh [--short] [output directory, default runs/e2e]
# Environment: PYTHON (default: python), E2E_STEPS (training steps of the main run).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

short=0
out="runs/e2e"
for argument in "$@"; do
  case "$argument" in
    --short) short=1 ;;
    --help | -h) sed -n '2,5p' "$0" | cut -c3-; exit 0 ;;
    -*) echo "error: unknown option $argument (known: --short, --help)" >&2; exit 2 ;;
    *) out="$argument" ;;
  esac
done
python="${PYTHON:-python}"
# Byte code is kept, so that only the first step pays for compiling what it imports.
unset PYTHONDONTWRITEBYTECODE
if [[ "$short" == 1 ]]; then
  steps="${E2E_STEPS:-60}" phase=10 samples=4 documents=6 tokens=512
else
  steps="${E2E_STEPS:-240}" phase=30 samples=16 documents=24 tokens=1024
fi
kill_at=$((steps / 2))
run="$out/pilot_smoke" phases="$out/forgetting"
begin=$SECONDS
number=0
step() {
  number=$((number + 1))
  echo
  echo "[$number/9] $* ($((SECONDS - begin)) s)"
}

step "corpus, tokenizer and shards from this Python's standard library"
PYTHON="$python" bash scripts/data/run_sample.sh data/stdlib
rm -rf "$out"
mkdir -p "$out"

train=("$python" train.py --config-name pilot_smoke run.dir="$run" train.steps="$steps"
  train.validate_every=$((steps / 3)) checkpoint.every=$((steps / 6)) logging.every=5
  schedule.warmup=$((steps / 10)))

step "train hope_attention, killed without warning near step $kill_at"
"${train[@]}" &
trainer=$!
while kill -0 "$trainer" 2>/dev/null; do
  reached=$("$python" -c "import json, pathlib; p = pathlib.Path('$run/status.json'); print(json.loads(p.read_text())['step'] if p.is_file() else 0)" 2>/dev/null || echo 0)
  if ((reached >= kill_at)); then
    kill -9 "$trainer" 2>/dev/null || true
    break
  fi
  sleep 0.5
done
wait "$trainer" 2>/dev/null || true
cp "$run/metrics.jsonl" "$out/metrics_before_the_kill.jsonl"

step "resume from the newest checkpoint and finish"
"${train[@]}" resume=auto

step "compare the steps that ran twice, before the kill and after the resume: bit by bit"
"$python" scripts/checks/loss_compare.py "$out/metrics_before_the_kill.jsonl" "$run" --assert-equal

step "evaluate: perplexity, zero-shot cloze, needle; memorisation off and on"
"$python" -m nl eval "$run" --suite perplexity zeroshot needle --set \
  perplexity.max_documents="$documents" perplexity.max_tokens="$tokens" \
  zeroshot.samples=$((samples * 2)) needle.samples="$samples" needle.lengths='[128, 256]'

step "forgetting: prose, code, prose again"
"$python" train.py --config-name pilot_smoke experiment=hope/forgetting_smoke \
  run.dir="$phases" train.steps=$((3 * phase)) train.validate_every=0 checkpoint.every="$phase" \
  schedule.warmup=5 logging.every=10 \
  stream.phases="[{domain: prose, steps: $phase}, {domain: code, steps: $phase}, {domain: prose, steps: $phase}]"
"$python" scripts/eval/continual.py --checkpoints "$phases" \
  --segments-yaml configs/data/continual_segments_sample.yaml --max-batches 2 --max-tokens 512 \
  --output "$run/artifacts/evals/continual.json"

step "generate with streamed State"
"$python" -m nl generate "$run" --prompt "Return the number of" --max-new-tokens 48 \
  --temperature 0.8 --top-k 50 --seed 1 --save

step "report"
"$python" -m nl report "$run"

step "what was measured"
"$python" scripts/checks/e2e_table.py "$run" --seconds $((SECONDS - begin))
