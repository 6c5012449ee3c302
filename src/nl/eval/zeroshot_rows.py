"""What lm_eval's result and samples say, as rows, as facts and per sample. Floor 6."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nl.core.protocols import EvalRow
from nl.eval.context import EvalContext, Memorize
from nl.eval.requests import Encoding
from nl.eval.rows import make_row, mean_and_stderr, ratio_and_stderr

Logged = Sequence[dict[str, Any]]
"""Samples as lm_eval logs them."""
RATIOS = ("word_perplexity", "byte_perplexity", "bits_per_byte")
"""Metrics whose samples hold (log-likelihood, words or bytes)."""


def harness_facts(config: Any) -> dict[str, Any]:
    """What numbers of every task depend on."""
    facts = {"begin": config.begin, "max_length": config.max_length}
    return {"lm_eval": version("lm_eval"), **facts, "tasks": {}}


def task_facts(task: Any, result: dict[str, Any], logged: Logged) -> dict[str, Any]:
    """Which task it was: its version, its data, a digest of every prompt and answer."""
    name = task.task_name
    config = task.config
    asked = [[s["doc_id"], s["prompt_hash"], s["target_hash"]] for s in logged]
    kwargs = config.dataset_kwargs or {}
    files = kwargs.get("data_files", {}) if isinstance(kwargs, dict) else {}
    split = config.test_split or config.validation_split or config.training_split
    own = files.get(split) if isinstance(files, dict) else None
    return {
        "version": result["versions"].get(name),
        "num_fewshot": result["n-shot"].get(name),
        "output_type": config.output_type,
        "dataset": [config.dataset_path, config.dataset_name],
        "split": split,
        "file": own,
        "file_sha256": _sha256(Path(own).read_bytes()) if isinstance(own, str) else None,
        "samples": len(logged),
        "prompts_sha256": _sha256(json.dumps(asked).encode()),
        "higher_is_better": result["higher_is_better"].get(name),
    }


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def uniform_guess(logged: Logged, encoding: Encoding) -> dict[str, float]:
    """What a model scores on open answers and whole texts that finds every token as likely."""
    nats = math.log(encoding.tokenizer.vocab_size)
    first = logged[0]
    if "perplexity" in first:
        lengths = [len(encoding.pair(*s["arguments"][0]).continuation) for s in logged]
        mean = nats * sum(lengths) / len(lengths)
        right = sum(math.exp(-nats * length) for length in lengths) / len(lengths)
        return {"answer_nats": mean, "perplexity": _exp(mean), "acc": right}
    known = [metric for metric in RATIOS if metric in first]
    tokens = sum(len(encoding.text(s["arguments"][0][0])) for s in logged) if known else 0
    found = {}
    for metric in known:
        mean = nats * tokens / sum(s[metric][1] for s in logged)
        found[metric] = mean / math.log(2) if metric == "bits_per_byte" else _exp(mean)
    return found


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def task_rows(
    name: str, mode: Memorize, result: dict[str, Any], logged: Logged, seconds: float
) -> list[EvalRow]:
    """Rows of one task from lm_eval's result and samples."""
    choices = [len(sample["filtered_resps"]) for sample in logged]
    chance = sum(1 / count for count in choices) / len(choices) if min(choices) > 1 else None
    rows = []
    result = result | _errors(result, logged)
    for key, value in result.items():
        metric, _, kind = key.partition(",")
        if not kind or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        error = result.get(f"{metric}_stderr,{kind}")
        rows.append(
            make_row(
                "zeroshot",
                name,
                metric,
                float(value),
                len(logged),
                stderr=float(error) if isinstance(error, (int, float)) else None,
                seconds=seconds,
                memorize=mode,
                chance=chance if metric.startswith("acc") else None,
            )
        )
    return rows


def _errors(result: dict[str, Any], logged: Logged) -> dict[str, Any]:
    """Errors that lm_eval leaves out, or takes from resampled exponentials (all outliers).

    Those of perplexities are of first order in the error of their logarithm, documents being the
    sampling unit.
    """
    found: dict[str, Any] = {}
    first = logged[0]
    if "perplexity" in first:  # a sample's entry is the log-probability of its answer
        mean, error = mean_and_stderr([-float(sample["perplexity"]) for sample in logged])
        found |= {"answer_nats,none": mean, "answer_nats_stderr,none": error}
        wide = None if error is None else float(result["perplexity,none"]) * error
        found["perplexity_stderr,none"] = wide
    for metric in (metric for metric in RATIOS if metric in first):
        nats, sizes = zip(*(sample[metric] for sample in logged), strict=True)
        _, error = ratio_and_stderr([-float(x) for x in nats], sizes)
        scale = 1 / math.log(2) if metric == "bits_per_byte" else float(result[f"{metric},none"])
        found[f"{metric}_stderr,none"] = None if error is None else scale * error
    return found


def keep_samples(context: EvalContext, name: str, mode: Memorize, logged: Logged) -> None:
    """Every sample in the evaluation's record: values whose mean, or sum over sum, rows hold."""
    for sample in logged:
        values: dict[str, Any] = {}
        for metric in sample.get("metrics", ()):
            value: Any = sample.get(metric)
            if metric == "perplexity":
                values["answer_nats"] = -float(value)
            elif metric == "bits_per_byte":
                values[metric] = [-float(value[0]) / math.log(2), value[1]]
            elif isinstance(value, (int, float)):
                values[metric] = float(value)
        context.record.add(name, mode, f"{sample['doc_id']}-{sample['doc_hash'][:16]}", values)


def save_samples(path: Path, logged: Logged) -> None:
    """One JSON line per sample, as lm_eval logs it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(sample, default=str) + "\n" for sample in logged)
    path.write_text(text)
