#!/usr/bin/env bash
# The stdlib corpus from raw text to shards, through every stage, without a network.
# Usage: bash scripts/data/run_sample.sh [data directory, default data/stdlib]
# Stages that are up to date are skipped; a killed call is gone on with by the next.
# Environment: PYTHON (default: python), VOCAB_SIZE (4096), LIMIT_MB per domain (6),
# TOKENIZER_MODEL (a tokenizer to use instead of training one), WORKERS (1), EXECUTOR (local).
set -euo pipefail
if [[ "${1:-}" == "--help" || "${1:-}" == "-h" ]]; then
  sed -n '2,6p' "$0" | cut -c3-
  exit 0
fi
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
out="${1:-data/stdlib}"
python="${PYTHON:-python}"
model=()
if [[ -n "${TOKENIZER_MODEL:-}" ]]; then model=(--tokenizer-path "$TOKENIZER_MODEL"); fi
echo "1/2 ingest, filter, dedup, divide, tokenizer, shard"
"$python" "$here/process_mixture.py" "$here/../../configs/data/stdlib.yaml" \
  --set output_dir="$out" --set prose.max_mb="${LIMIT_MB:-6}" --set code.max_mb="${LIMIT_MB:-6}" \
  --set tokenizer.vocab_size="${VOCAB_SIZE:-4096}" --log-file "$out/mixture_log.json" \
  --workers "${WORKERS:-1}" --executor "${EXECUTOR:-local}" ${model[@]+"${model[@]}"}
echo "2/2 check"
"$python" "$here/inspect_shards.py" "$out" --samples 0 --unigram
