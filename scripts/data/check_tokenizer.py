"""Check a tokenizer: digest, round trips, pieces per word, unknowns and bytes, by domain.

Exit code 1: another digest than expected, or worse than the baseline.
Example: python scripts/data/check_tokenizer.py --tokenizer-path data/stdlib/tokenizer.model
"""

import argparse
import sys
from pathlib import Path

from nl.data.files import check_writable, write_json
from nl.data.prep.command import run
from nl.data.prep.coverage import GUARDED, documents_by_domain, regressions, report, table_lines
from nl.data.tokenizer import load_tokenizer


def main() -> None:
    """Read the flags, look, print; end with code 1 where something is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag, shown = parser.add_argument, "default: %(default)s"
    flag("--tokenizer-path", required=True, help=".model, tokenizer.json or bytes")
    flag("--corpus", type=Path, help="corpus directory whose domains are looked at")
    flag("--split", default="val", help="split of the corpus; " + shown)
    flag("--sample-file", nargs="*", default=[], help="texts: .txt (a line each), .jsonl ...")
    flag("--max-lines", type=int, default=10_000, help="documents of each domain; " + shown)
    flag("--expected-sha256", help="refuse a tokenizer with another digest")
    flag("--metadata-json", type=Path, help="write tokenizer_path and sha256 here")
    flag("--output", type=Path, help="write the whole report here (a later --baseline)")
    flag("--baseline", type=Path, help="an earlier --output that must not become worse")
    flag("--avg-tokens-tolerance", type=float, default=0.05, help=shown)
    flag("--single-token-drop-tolerance", type=float, default=0.02, help=shown)
    flag("--two-token-drop-tolerance", type=float, default=0.02, help=shown)
    flag("--quiet", action="store_true", help="print the digest alone")
    a = parser.parse_args()
    check_writable(a.output)
    tokenizer = load_tokenizer(a.tokenizer_path)
    print(f"sha256 {tokenizer.sha256}")
    if a.metadata_json:
        named = {"tokenizer_path": a.tokenizer_path, "sha256": tokenizer.sha256}
        write_json(a.metadata_json, named)
    if a.expected_sha256 not in (None, tokenizer.sha256):
        sys.exit(f"error: {a.tokenizer_path}: sha256 is not {a.expected_sha256}")
    texts = documents_by_domain(a.corpus, a.split, a.sample_file, a.max_lines)
    found = report(tokenizer, texts, a.tokenizer_path)
    if a.output:
        write_json(a.output, found)
    if not a.quiet:
        special = ", ".join(f"{name} {i}" for name, i in found["special_ids"].items())
        print(f"{tokenizer.kind}, vocabulary {tokenizer.vocab_size:,}, {special}")
        print(*table_lines(found), sep="\n")
    if found["lossy_on"] or found["all"]["documents_changed_by_round_trip"]:
        changed = found["lossy_on"] or [found["first_document_changed"]]
        print(f"warning: lossy; decoding does not give back {changed[0]!r}", file=sys.stderr)
    limits = (a.avg_tokens_tolerance, a.single_token_drop_tolerance, a.two_token_drop_tolerance)
    if a.baseline:
        worse = regressions(found, a.baseline, dict(zip(GUARDED, limits, strict=True)))
        sys.exit("".join(f"worse than the baseline: {line}\n" for line in worse) or 0)


if __name__ == "__main__":
    sys.exit(run(main))
