#!/usr/bin/env bash
# The stdlib corpus from raw text to shards. Steps that are up to date are skipped.
# Usage: bash scripts/data/run_sample.sh [data directory, default data/stdlib]
# Environment: PYTHON (default: python), VOCAB_SIZE (4096), LIMIT_MB per domain (6).
set -euo pipefail
if [[ "${1:-}" == "--help" || "${1:-}" == "-h" ]]; then
  sed -n '2,4p' "$0" | cut -c3-
  exit 0
fi
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
out="${1:-data/stdlib}"
python="${PYTHON:-python}"
echo "1/4 corpus from this Python's standard library"
"$python" "$here/build_stdlib.py" --output-dir "$out/corpus" --limit-mb "${LIMIT_MB:-6}"
echo "2/4 tokenizer on its train split"
"$python" "$here/train_tokenizer.py" --corpus "$out/corpus" --output-dir "$out" \
  --vocab-size "${VOCAB_SIZE:-4096}"
echo "3/4 shards"
"$python" "$here/shard_corpus.py" --corpus "$out/corpus" \
  --tokenizer-path "$out/tokenizer.model" --output-dir "$out"
echo "4/4 check"
"$python" "$here/inspect_shards.py" "$out" --samples 0 --unigram
