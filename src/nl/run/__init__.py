"""The run directory: what a run leaves on disk and how it is found again. Floor 0, stdlib only."""

from nl.run.directory import RunDir, RunError, write_atomic
from nl.run.discover import checkpoints, find_runs, newest_run, newest_valid
from nl.run.manifest import verify, write_manifest
from nl.run.records import RecordWriter, cut_records, read_records

__all__ = [
    "RecordWriter",
    "RunDir",
    "RunError",
    "checkpoints",
    "cut_records",
    "find_runs",
    "newest_run",
    "newest_valid",
    "read_records",
    "verify",
    "write_atomic",
    "write_manifest",
]
