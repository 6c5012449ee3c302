#!/usr/bin/env bash
# Every evaluation of one or two models, all results in one folder: zero-shot, needles, passkey,
# perplexity, long documents, forgetting (where a run has phases), one page that compares them.
# Usage: bash scripts/eval/run_pilot_suite.sh [output directory, default eval/pilot_suite]
# Environment:
#   HOPE_CHECKPOINT   run, checkpoint or exported file; default: the newest below runs/pilot_smoke
#   TITAN_CHECKPOINT  a second model to compare with; default: none
#   HOPE_CONFIG, TITAN_CONFIG  config names that the checkpoints are checked against; default: none
#   TOKENIZER_PATH    must be the tokenizer of the data; default: the data directory's
#   DATA              data directory; default: the one each run was trained on
#   DEVICE cpu   MAX_SAMPLES 256   TASKS cloze   DATA_DIR (local copies of hub tasks)
#   NIAH_CONTEXTS "256 512"   NIAH_SAMPLES 8   PASSKEY_SAMPLES 64   PASSKEY_FILLER 24 (sentences)
#   PG19_SAMPLES 32   PG19_TOKENS 2048   PG19_SOURCE corpus (pg19: the hub; or files)
#   CONT_SEGMENTS configs/data/continual_segments_sample.yaml   CONT_BATCH 4   CONT_MAX_BATCHES 20
#   MEMORIZE "off context"   MEMORIZE_PATHS all   MEMORIZE_SURPRISE_THRESHOLD (none)
#   PYTHON python
# The long contexts of the papers: NIAH_CONTEXTS="2048 4096 8192 16384 32768 65536".
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"

case "${1:-}" in
  --help | -h) sed -n '2,17p' "$0" | cut -c3-; exit 0 ;;
  -*) echo "error: unknown option $1 (known: --help)" >&2; exit 2 ;;
esac
out="${1:-eval/pilot_suite}"
python="${PYTHON:-python}"
hope="${HOPE_CHECKPOINT:-}"
if [[ -z "$hope" ]]; then
  for run in runs/pilot_smoke/*/; do
    [[ -d "$run/checkpoints" ]] && hope="${run%/}"
  done
fi
if [[ -z "$hope" ]]; then
  echo "error: HOPE_CHECKPOINT: not set, and there is no run below runs/pilot_smoke; train one" \
    "(python train.py --config-name pilot_smoke) or name a checkpoint." >&2
  exit 2
fi
titan="${TITAN_CHECKPOINT:-}"
read -ra contexts <<<"${NIAH_CONTEXTS:-256 512}"
read -ra memorize <<<"${MEMORIZE:-off context}"
read -ra paths <<<"${MEMORIZE_PATHS:-all}"
begin=$SECONDS
done_with() { echo "== $* ($((SECONDS - begin)) s)"; }

suite() { # name checkpoint config
  local name="$1" folder="$out/$1"
  shared=(--checkpoint "$2" --device "${DEVICE:-cpu}" --memorize "${memorize[@]}"
    --memorize-paths "${paths[@]}")
  [[ -z "$3" ]] || shared+=(--config "$3")
  [[ -z "${TOKENIZER_PATH:-}" ]] || shared+=(--tokenizer-path "$TOKENIZER_PATH")
  [[ -z "${DATA:-}" ]] || shared+=(--data "$DATA")
  [[ -z "${MEMORIZE_SURPRISE_THRESHOLD:-}" ]] ||
    shared+=(--memorize-surprise-threshold "$MEMORIZE_SURPRISE_THRESHOLD")
  local tasks=(--tasks "${TASKS:-cloze}" --max-samples "${MAX_SAMPLES:-256}")
  [[ -z "${DATA_DIR:-}" ]] || tasks+=(--data-dir "$DATA_DIR")
  done_with "$name: zero-shot"
  "$python" "$root"/scripts/eval/zeroshot.py "${shared[@]}" "${tasks[@]}" --output "$folder/zeroshot.json"
  done_with "$name: needles"
  "$python" "$root"/scripts/eval/niah.py "${shared[@]}" --context-lengths "${contexts[@]}" \
    --samples-per-length "${NIAH_SAMPLES:-8}" --output "$folder/niah.json"
  "$python" "$root"/scripts/eval/plot_niah.py "$folder/niah.json" --output "$folder/niah.png"
  done_with "$name: passkey"
  "$python" "$root"/scripts/eval/passkey.py "${shared[@]}" --samples "${PASSKEY_SAMPLES:-64}" \
    --filler-sentences "${PASSKEY_FILLER:-24}" --output "$folder/passkey.json"
  done_with "$name: perplexity"
  "$python" "$root"/scripts/eval/perplexity.py "${shared[@]}" --splits test \
    --max-samples "${PG19_SAMPLES:-32}" --output "$folder/perplexity.json"
  done_with "$name: long documents"
  "$python" "$root"/scripts/eval/pg19_perplexity.py "${shared[@]}" --source "${PG19_SOURCE:-corpus}" \
    --max-samples "${PG19_SAMPLES:-32}" --context-tokens "${PG19_TOKENS:-2048}" \
    --output "$folder/pg19_perplexity.json"
  if [[ -f "$2/config.yaml" ]] && grep -q '^  phases:' "$2/config.yaml"; then
    done_with "$name: forgetting"
    local forgetting=("${shared[@]:2}")
    "$python" "$root"/scripts/eval/continual.py --checkpoints "$2" "${forgetting[@]}" \
      --segments-yaml "${CONT_SEGMENTS:-$root/configs/data/continual_segments_sample.yaml}" \
      --batch-size "${CONT_BATCH:-4}" --max-batches "${CONT_MAX_BATCHES:-20}" \
      --output "$folder/continual.json"
  fi
  "$python" "$root"/scripts/eval/summarize.py --inputs "$folder"/*.json \
    --keys "*.acc.*" "*.choice_accuracy.*" "*.nats_per_token.*" --output "$folder/summary.md"
}

mkdir -p "$out"
suite hope "$hope" "${HOPE_CONFIG:-}"
if [[ -n "$titan" ]]; then
  suite titan "$titan" "${TITAN_CONFIG:-}"
  done_with "side by side"
  "$python" "$root"/scripts/eval/compare.py --inputs "$out/titan" "$out/hope" --output "$out/compare.html"
fi
done_with "everything is in $out"
