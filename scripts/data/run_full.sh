#!/usr/bin/env bash
# The whole mixture: filter, tokenizer, shards. Needs the hub or local mirrors (*_LOCAL).
# Usage: bash scripts/data/run_full.sh
# Environment, with defaults from the manifest unless named here:
#   MIXTURE_CONFIG        manifest (configs/data/refinedweb_mixture_full.yaml)
#   OUTPUT_DIR            data directory;  WORK_DIR directory of the stages
#   TOKENIZER_MANIFEST    train the tokenizer on these sources instead of the train split
#   TOKENIZER_OUTPUT_DIR  its directory;   TOKENIZER_LOG its log
#   TOKENIZER_MODEL       a tokenizer to use; trained if it does not exist
#   VOCAB_SIZE            pieces (32000)
#   RETRAIN_TOKENIZER     1: train although TOKENIZER_MODEL exists (0)
#   FORCE_FILTER          1: filter again from the beginning (0)
#   SHARD_LOG             counts of every stage as JSON (<data directory>/mixture_log.json)
#   FALLBACK_SPLIT        split to read where the one asked for does not exist (test)
#   WORKERS (1)  EXECUTOR (local)  PYTHON (python)
# For each data set, PREFIX one of RW_ WIKI_ C4_ RPJ_ CODE_:
#   PREFIX_DATASET  PREFIX_SUBSET  PREFIX_SPLIT  PREFIX_TEXT_COLUMN  PREFIX_LOCAL (mirror)
#   PREFIX_LIMIT    documents kept, 0 for all (RW_LIMIT 100000, WIKI_LIMIT, C4_LIMIT, RPJ_LIMIT and
#                   CODE_LIMIT 50000); four times as many are read at most
#   PREFIX_OUTPUT   directory of the filtered text
#   PREFIX_LANG  PREFIX_LANG_THRESHOLD  PREFIX_MIN_CHARS  PREFIX_MAX_CHARS
set -euo pipefail
if [[ "${1:-}" == "--help" || "${1:-}" == "-h" ]]; then
  sed -n '2,21p' "$0" | cut -c3-
  exit 0
fi
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-python}"
config="${MIXTURE_CONFIG:-$here/../../configs/data/refinedweb_mixture_full.yaml}"

changes=()
change() { # manifest key, name of the environment variable
  if [[ -n "${!2:-}" ]]; then changes+=(--set "$1=${!2}"); fi
}
for pair in RW:refinedweb WIKI:wikipedia C4:c4 RPJ:redpajama CODE:code; do
  prefix="${pair%%:*}" name="${pair##*:}"
  change "$name.dataset" "${prefix}_DATASET"
  change "$name.subset" "${prefix}_SUBSET"
  change "$name.split" "${prefix}_SPLIT"
  change "$name.text_column" "${prefix}_TEXT_COLUMN"
  change "$name.local" "${prefix}_LOCAL"
  change "$name.limit" "${prefix}_LIMIT"
  change "$name.filtered_dir" "${prefix}_OUTPUT"
  change "$name.lang" "${prefix}_LANG"
  change "$name.lang_threshold" "${prefix}_LANG_THRESHOLD"
  change "$name.min_chars" "${prefix}_MIN_CHARS"
  change "$name.max_chars" "${prefix}_MAX_CHARS"
  changes+=(--set "$name.split_fallback=${FALLBACK_SPLIT-test}")
done
change output_dir OUTPUT_DIR
change tokenizer_output_dir TOKENIZER_OUTPUT_DIR
change tokenizer.vocab_size VOCAB_SIZE

flags=(--workers "${WORKERS:-1}" --executor "${EXECUTOR:-local}")
if [[ -n "${WORK_DIR:-}" ]]; then flags+=(--work-dir "$WORK_DIR"); fi
if [[ -n "${TOKENIZER_LOG:-}" ]]; then flags+=(--tokenizer-log "$TOKENIZER_LOG"); fi
if [[ -n "${SHARD_LOG:-}" ]]; then flags+=(--log-file "$SHARD_LOG"); fi
if [[ "${FORCE_FILTER:-0}" == 1 ]]; then flags+=(--force filter); fi

model="${TOKENIZER_MODEL:-}"
if [[ -n "${TOKENIZER_MANIFEST:-}" && (! -f "$model" || "${RETRAIN_TOKENIZER:-0}" == 1) ]]; then
  directory="${TOKENIZER_OUTPUT_DIR:-artifacts/tokenizer}"
  "$python" "$here/train_tokenizer.py" --manifest "$TOKENIZER_MANIFEST" \
    --output-dir "$directory" --vocab-size "${VOCAB_SIZE:-32000}" \
    --log-file "${TOKENIZER_LOG:-$directory/tokenizer_log.json}" --sample-mb 200
  model="$directory/tokenizer.model"
elif [[ "${RETRAIN_TOKENIZER:-0}" == 1 ]]; then
  model="" flags+=(--force tokenizer)
fi
if [[ -n "$model" && -f "$model" ]]; then flags+=(--tokenizer-path "$model"); fi
"$python" "$here/process_mixture.py" "$config" "${changes[@]}" "${flags[@]}"
