"""The ingest stage: a source becomes a corpus of parts of a fixed size. Floor 1.

One unit of a source is one rank. A part is closed when its text reaches ``part_mb``; beside it a
record says how far the unit had been read, so that a killed rank goes on behind its last part.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nl.config import ConfigError
from nl.data.documents import UNDIVIDED, Document, TextFile
from nl.data.files import write_json
from nl.data.prep import parts
from nl.data.prep.command import LOG
from nl.data.prep.engine import Executor
from nl.data.prep.parts import PartWriter, part_record
from nl.data.prep.sources import UNIT_BYTES, Tally, Unit, check_any, read_unit, units
from nl.data.prep.sources_spec import Source
from nl.data.prep.stage import Ranks, Stage, run_stage

VERSION = 2
"""Raise it when a source is read differently."""
PART_MB = 32.0
SHOW = 10.0
"""Seconds between lines of progress inside a unit."""
NOT_CONTENT = ("data_files", "local")
"""Where a source lies; what lies there is in the key by names, sizes and times."""
LABELS = ("label_column", "label", "label_names")
"""In the key where they are set, so that what was read before there were labels is kept."""


@dataclass(frozen=True, kw_only=True)
class IngestOptions:
    """How text is cut into parts."""

    part_mb: float = PART_MB
    """Megabytes (1e6) of text after which a part is closed."""
    unit_mb: float = UNIT_BYTES / 1e6
    """Small files are read together by one rank up to this many megabytes on disk."""

    def __post_init__(self) -> None:
        for name in ("part_mb", "unit_mb"):
            value = getattr(self, name)
            if not value > 0:
                raise ConfigError(f"--{name.replace('_', '-')}: {value}; must be > 0.")


@dataclass(frozen=True, kw_only=True)
class IngestTask:
    """One rank: one unit of a source in, its parts out."""

    source: Source
    units: Sequence[Unit]
    work: Path
    part_bytes: int

    def __call__(self, rank: int) -> dict[str, Any]:
        tally, written = self._before(rank)
        stream = read_unit(self.source, self.units[rank], tally)
        shown = time.monotonic()
        while (info := self._part(rank, len(written), stream, tally)) is not None:
            written.append(info)
            if time.monotonic() - shown > SHOW:
                shown = time.monotonic()
                text = "%s: unit %d of %d: %s documents, %.0f MB"
                args = (self.source.name, rank + 1, len(self.units), f"{tally.documents:,}")
                LOG.info(text, *args, tally.bytes / 1e6)
        total = parts.Tally(
            documents_in=tally.read,
            bytes_in=tally.bytes,
            documents_out=tally.documents,
            bytes_out=tally.bytes,
        )
        files = [(UNDIVIDED, info) for info in written]
        record = part_record(total, tally.reasons, self.source.name, files)
        more = {"first_bad": tally.first, "columns": tally.columns, "labels": tally.labels}
        return record | more

    def _before(self, rank: int) -> tuple[Tally, list[TextFile]]:
        """What an earlier call of this rank left: how far it read, and its whole parts."""
        tally = Tally()
        written: list[TextFile] = []
        while (note := self._note(rank, len(written))).is_file():
            data = json.loads(note.read_bytes())
            if not (self.work / "out" / data["info"]["file"]).is_file():
                break
            written.append(TextFile(**data["info"]))
            counted = {key: Counter(data["tally"].get(key, {})) for key in ("reasons", "labels")}
            tally = Tally(**data["tally"] | counted)
        return tally, written

    def _note(self, rank: int, number: int) -> Path:
        return self.work / "notes" / f"{rank:05d}_{number:05d}.json"

    def _part(
        self, rank: int, number: int, stream: Iterator[Document], tally: Tally
    ) -> TextFile | None:
        """Write the next part of a unit; None at its end."""
        first = next(stream, None)
        if first is None:
            return None
        name = f"{UNDIVIDED}/{self.source.name}/part_{rank:05d}_{number:05d}.jsonl"
        with PartWriter(self.work, name) as out:
            size = out.write(first)
            while size < self.part_bytes and (document := next(stream, None)) is not None:
                size += out.write(document)
        assert out.info is not None
        # Not asdict: it makes a Counter of pairs of a Counter.
        row = {"info": asdict(out.info), "tally": dict(vars(tally))}
        write_json(self._note(rank, number), row)
        return out.info


def ingest(
    source: Source, output: Path, options: IngestOptions, executor: Executor
) -> tuple[dict[str, Any], bool]:
    """Read a source into the corpus directory ``output``, undivided; its domain is the name.

    Returns:
        The log (``stage.json``) and whether anything was done.

    Raises:
        ConfigError: the source is not there, a file of it is torn, nothing in it could be used.
    """
    found = units(source, int(options.unit_mb * 1e6))
    identity = json.dumps([unit.identity() for unit in found])
    plain = {k: v for k, v in asdict(source).items() if k not in NOT_CONTENT}
    plain = {k: v for k, v in plain.items() if v or k not in LABELS}
    stage = Stage(
        name="ingest",
        version=VERSION,
        output=output,
        options={"source": plain, "part_mb": options.part_mb},
        inputs={"source": hashlib.sha256(identity.encode()).hexdigest()},
    )
    part_bytes = int(options.part_mb * 1e6)
    task = IngestTask(source=source, units=found, work=stage.work, part_bytes=part_bytes)

    def body(ranks: Ranks) -> list[dict[str, Any]]:
        sizes = [unit.bytes for unit in found]
        records = ranks.run(task, len(found), sizes if all(sizes) else ())
        _check(source, records)
        return records

    recipe = {"dataset": source.dataset, "subset": source.subset or "", "split": source.split}
    return run_stage(stage, body, executor, name=source.name, recipe=recipe)


def _check(source: Source, records: Sequence[Mapping[str, Any]]) -> None:
    whole = Tally()
    for record in records:
        counts = record["counts"]
        whole.add(
            Tally(
                read=counts["documents_in"],
                documents=counts["documents_out"],
                reasons=Counter(record["reasons"]),
                first=dict(record["first_bad"]),
                columns=tuple(record["columns"]),
                labels=Counter(record.get("labels", {})),
            )
        )
    check_any(source, whole)
