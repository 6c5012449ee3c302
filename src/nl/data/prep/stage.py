"""A stage of the data preparation: corpus in, corpus out, resumable, with a log. Floor 1.

While a stage works, everything lies in ``<output>/.<name>-<key>``; the key is a hash of the
stage's name and version, its options and the digests of its inputs, so finished ranks are kept and
never mistaken for those of other options. When all ranks have finished, files, ``manifest.json``
and ``stage.json`` are moved to ``<output>``.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nl.config import ConfigError, unstructure, writing
from nl.data.documents import SCHEMA, SPLITS, UNDIVIDED, CorpusManifest, TextFile
from nl.data.files import move_into, write_json
from nl.data.prep.command import LOG
from nl.data.prep.engine import Executor, run_tasks
from nl.data.prep.replace import check_own

LOG_NAME = "stage.json"
DROPPED = "dropped"
"""Folder of what was left out, where a stage was asked to keep it."""
Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What decides the bytes of a stage's output, and where it goes."""

    name: str
    version: int
    """Raise it when the code writes other bytes from the same input."""
    output: Path
    options: Mapping[str, Any]
    """Plain data."""
    inputs: Mapping[str, str]
    """Digest of each input, such as ``sha256_file`` of a corpus manifest."""

    @property
    def key(self) -> str:
        """Twelve hex digits of everything above but the output directory."""
        what = [self.name, self.version, dict(self.options), dict(self.inputs)]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def work(self) -> Path:
        """Where unfinished work lies; absolute, because ranks may run elsewhere."""
        return self.output.absolute() / f".{self.name}-{self.key}"


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """One run of the engine inside a stage."""

    executor: Executor
    stage: Stage

    def run(
        self, task: Callable[[int], Record], tasks: int, sizes: Sequence[int] = (), step: str = ""
    ) -> list[dict[str, Any]]:
        """Records of all ranks of one step; steps of one stage have names."""
        name = f"{self.stage.name}-{step}" if step else self.stage.name
        work = self.stage.work / step if step else self.stage.work
        return run_tasks(name, task, tasks=tasks, work=work, executor=self.executor, sizes=sizes)


Body = Callable[[Ranks], Sequence[Record]]
"""Runs the ranks; returns their records (``nl.data.prep.parts.part_record``) in order."""


def run_stage(
    stage: Stage,
    body: Body,
    executor: Executor,
    *,
    name: str,
    recipe: Mapping[str, str],
    splits: Sequence[str] = (UNDIVIDED,),
) -> tuple[dict[str, Any], bool]:
    """Bring a stage to its end, from wherever it was left.

    Args:
        stage: what is made and where.
        body: runs the ranks.
        executor: where they run.
        name: name of the corpus.
        recipe: how the input was made; this stage is added.
        splits: splits of the output.

    Returns:
        The log (``stage.json``) and whether anything was done.

    Raises:
        ConfigError: the output cannot be written or holds what this stage did not write,
            another process is at work there, or a rank complained.
    """
    check_own(stage.output, (UNDIVIDED, *SPLITS, DROPPED), stage.name)
    with alone(stage.output):
        log = finished(stage)
        if log is not None:
            forget(stage)
            return log, False
        final = stage.work / "final.json"
        if not final.is_file():
            start = time.perf_counter()
            records = body(Ranks(executor=executor, stage=stage))
            manifest = _manifest(stage, records, name, recipe, splits)
            log = _log(stage, records, executor, time.perf_counter() - start)
            folders = sorted(path.name for path in (stage.work / "out").iterdir())
            done = {"manifest": unstructure(manifest), "log": log, "folders": folders}
            write_json(final, done)
        return _publish(stage), True


def finished(stage: Stage) -> dict[str, Any] | None:
    """The log of a finished stage whose files are all there with their sizes; else None."""
    try:
        log = json.loads((stage.output / LOG_NAME).read_bytes())
        same = log["stage"] == stage.name and log["key"] == stage.key
        files = log["files"] if same else {"manifest.json": -1}
        whole = all((stage.output / f).stat().st_size == size for f, size in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not (same and whole and (stage.output / "manifest.json").is_file()):
        return None
    assert isinstance(log, dict)
    return log


def total(records: Sequence[Record]) -> dict[str, dict[str, int]]:
    """Counts and reasons of all ranks, by domain and, as ``""``, of all of them.

    Raises:
        AssertionError: in is not out plus the sum of reasons.
    """
    sums: dict[str, Counter[str]] = {"": Counter()}
    for record in records:
        for name in ("", record["domain"]):
            row = sums.setdefault(name, Counter())
            row.update(record["counts"])
            row.update({f"reasons.{k}": v for k, v in record["reasons"].items()})
    for row in sums.values():
        dropped = sum(v for k, v in row.items() if k.startswith("reasons."))
        assert row["documents_in"] == row["documents_out"] + dropped
    return {name: dict(row) for name, row in sums.items()}


def _log(
    stage: Stage, records: Sequence[Record], executor: Executor, seconds: float
) -> dict[str, Any]:
    return {
        "stage": stage.name,
        "key": stage.key,
        "version": stage.version,
        "options": dict(stage.options),
        "inputs": dict(stage.inputs),
        **counted(records),
        "notes": dict(sum((Counter(r.get("notes", {})) for r in records), Counter())),
        "parts": len(records),
        "seconds": round(seconds, 3),
        "rank_seconds": round(sum(r.get("seconds", 0.0) for r in records), 3),
        "workers": executor.workers,
        "executor": executor.kind,
        "files": {
            f["file"]: (stage.work / "out" / f["file"]).stat().st_size
            for record in records
            for f in record["files"]
        },
    }


def counted(records: Sequence[Record]) -> dict[str, Any]:
    """``counts``, ``reasons`` and the same by ``domains``, over all records."""
    rows = {name: _split_reasons(row) for name, row in total(records).items()}
    whole: dict[str, Any] = dict(rows.pop(""))
    return whole | {"domains": rows}


def _split_reasons(row: Mapping[str, int]) -> dict[str, dict[str, int]]:
    mark = "reasons."
    reasons = {k.removeprefix(mark): v for k, v in row.items() if k.startswith(mark)}
    counts = {k: v for k, v in row.items() if not k.startswith(mark)}
    return {"counts": counts, "reasons": dict(sorted(reasons.items()))}


def _manifest(
    stage: Stage,
    records: Sequence[Record],
    name: str,
    recipe: Mapping[str, str],
    splits: Sequence[str],
) -> CorpusManifest:
    domains = list(dict.fromkeys(record["domain"] for record in records))
    listed: dict[str, dict[str, list[TextFile]]] = {s: {d: [] for d in domains} for s in splits}
    for record in records:
        for row in record["files"]:
            info = {k: row[k] for k in ("file", "documents", "bytes", "sha256")}
            listed[row["split"]][row["domain"]].append(TextFile(**info))
    return CorpusManifest(
        schema=SCHEMA,
        name=name,
        recipe={**recipe, stage.name: stage.key},
        splits={s: {d: tuple(files) for d, files in ds.items()} for s, ds in listed.items()},
    )


def _publish(stage: Stage) -> dict[str, Any]:
    """Move what is finished to its place; may be cut off and done again at any point."""
    final = json.loads((stage.work / "final.json").read_bytes())
    out = stage.work / "out"
    for name in (LOG_NAME, "manifest.json"):
        (stage.output / name).unlink(missing_ok=True)
    for folder in (UNDIVIDED, *SPLITS, DROPPED):
        if (out / folder).is_dir():
            move_into(out / folder, stage.output / folder)
        elif folder not in final["folders"]:
            shutil.rmtree(stage.output / folder, ignore_errors=True)
    write_json(stage.output / "manifest.json", final["manifest"])
    write_json(stage.output / LOG_NAME, final["log"])
    forget(stage)
    log = final["log"]
    assert isinstance(log, dict)
    LOG.info("%s: %s", stage.name, summary(log))
    return log


def forget(stage: Stage) -> None:
    """Remove the working directories of this stage, those of other options too."""
    for work in stage.output.glob(f".{stage.name}-*"):
        shutil.rmtree(work, ignore_errors=True)


def summary(log: Mapping[str, Any]) -> str:
    """One line: documents in, out, dropped by reason."""
    counts, reasons = log["counts"], log["reasons"]
    dropped = ", ".join(f"{k} {v:,}" for k, v in reasons.items())
    return (
        f"{counts['documents_in']:,} documents in, {counts['documents_out']:,} out "
        f"({counts['bytes_out'] / 1e6:.1f} MB)" + (f"; dropped: {dropped}" if dropped else "")
    )


def told(output: Path, log: Mapping[str, Any], done: bool, *, dry: bool = False) -> Iterator[str]:
    """Lines for a terminal: where a stage's output is and what it holds, by domain."""
    state = "written" if done else "up to date, nothing to do"
    yield f"{output}: {'dry run, nothing written' if dry else state}"
    for name, row in log["domains"].items():
        yield f"  {name}: {summary(row)}"


@contextlib.contextmanager
def alone(output: Path) -> Iterator[None]:
    """One process at a time works on an output directory; a killed one leaves no lock."""
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        lock = (output / ".lock").open("w")
    with lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"{output}: another process is building it; wait for it or choose another output."
            ) from error
        yield
