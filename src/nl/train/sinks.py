"""Where rows go: metrics.jsonl always, terminal, one JSON file, Weights & Biases. Floor 5."""

from __future__ import annotations

import importlib.util
import json
import netrc
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nl.config import ConfigError, unstructure
from nl.config.run import LoggingConfig, RunConfig
from nl.core.env_file import read_env_file
from nl.core.logs import get_logger
from nl.run.directory import RunDir
from nl.run.files import writable_folder, write_atomic
from nl.run.records import RecordWriter, clean, cut_records, line, read_records
from nl.train.charts import charts, finals, named
from nl.train.last_layer import FILE, LastLayer

log = get_logger(__name__)

Row = Mapping[str, Any]


SPEED = {
    "perf/tokens_per_s": "{:,.0f} tok/s",
    "perf/mfu": "mfu {:.1%}",
    "perf/memory_gib": "{:.2f} GiB",
    "perf/data_share": "data {:.0%}",
}
"""How the console shows a row's speed, memory and wait for data."""


class Sink(Protocol):
    """Receives every row; may not change training."""

    def write(self, row: Row) -> None: ...
    def sync(self) -> None: ...
    def rewind(self, step: int) -> None: ...
    def close(self) -> None: ...


class RecordSink:
    """metrics.jsonl of the run directory: the source of truth."""

    def __init__(self, path: Path) -> None:
        self._writer = RecordWriter(path)

    def write(self, row: Row) -> None:
        """Append and flush."""
        self._writer.append(row)

    def sync(self) -> None:
        """Make it durable."""
        self._writer.sync()

    def rewind(self, step: int) -> None:
        """Drop the rows after ``step``."""
        cut_records(self._writer.path, step)

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class JsonSink:
    """The ``json`` backend: a copy of the rows at ``logging.path``, as lines or as one list.

    Lines are appended as they come; a ``.json`` list is written when training ends or saves.
    """

    def __init__(self, path: Path, metrics: Path) -> None:
        self._path, self._metrics = path, metrics
        self._writer: RecordWriter | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.rewind(0)
        except OSError as error:
            raise ConfigError(
                f"logging.path: {path} cannot be written ({error.strerror}); choose another place."
            ) from error

    def rewind(self, step: int) -> None:
        """Copy metrics.jsonl, which has been rewound already."""
        del step
        if self._writer is not None:
            self._writer.close()
        if self._path.suffix == ".jsonl":
            rows = read_records(self._metrics)
            write_atomic(self._path, "".join(line(row) for row in rows))
            self._writer = RecordWriter(self._path)

    def write(self, row: Row) -> None:
        """Append, where the file has lines."""
        if self._writer is not None:
            self._writer.append(row)

    def sync(self) -> None:
        """Bring a list up to date; make lines durable."""
        if self._writer is not None:
            self._writer.sync()
        else:
            write_atomic(self._path, json.dumps(read_records(self._metrics), indent=1) + "\n")

    def close(self) -> None:
        """Write what is left."""
        self.sync()
        if self._writer is not None:
            self._writer.close()


class ConsoleSink:
    """Progress on stderr: a bar on a terminal, else a line at most once a second."""

    def __init__(self, total_steps: int, start: int, *, interval: float = 1.0) -> None:
        self._total, self._interval = total_steps, interval
        self._begin, self._last = time.monotonic(), -1e9
        self._first: tuple[int, float] | None = None
        self._bar = _bar() if sys.stderr.isatty() else None
        if self._bar is not None:
            self._task = self._bar.add_task("train", total=total_steps, completed=start, facts="")
            self._bar.start()

    def write(self, row: Row) -> None:
        """Show one row."""
        step, train = int(row["step"]), row["split"] == "train"
        facts = _facts(row)
        if self._bar is not None:
            if train:
                self._bar.update(self._task, completed=step, facts=facts)
            else:
                self._bar.console.print(f"step {step}  {row['split']}  {facts}", highlight=False)
            return
        now = time.monotonic()
        since, begin = self._first = self._first or (step, now)
        if train and now - self._last < self._interval and step not in (1, self._total):
            return
        self._last = now if train else self._last
        times = f"  {_span(now - self._begin)} elapsed" if train else ""
        if train and step > since:  # without the first steps, which compile and warm up
            times += f"  {_span((now - begin) / (step - since) * (self._total - step))} left"
        log.info("step %d/%d  %s  %s%s", step, self._total, row["split"], facts, times)

    def sync(self) -> None:
        """Nothing is held back."""

    def rewind(self, step: int) -> None:
        """The next row shows where it goes on."""
        self._first = None

    def close(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.stop()


def _bar() -> Progress:
    columns = (
        TextColumn("{task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("{task.fields[facts]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))


def _facts(row: Row) -> str:
    loss = clean(row)["loss"]
    text = f"loss {loss:.4f}" if loss is not None else "loss non-finite"
    for key, form in SPEED.items():
        if row.get(key) is not None:
            text += "  " + form.format(row[key])
    return text


def _span(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


TROUBLES = (
    *(OSError, RuntimeError, ValueError, TypeError, AttributeError, LookupError),
    *(ArithmeticError, AssertionError, ImportError),
)
"""What another package may raise, short of running out of memory and of being interrupted."""


PACKAGE = Path(__file__).resolve().parents[1]
"""What logging.code sends."""


def is_source(path: str, root: str = "") -> bool:
    """Whether a file is source or configuration; ``root`` is what W&B gives besides."""
    del root
    return path.endswith((".py", ".yaml", ".yml"))


class WandbSink:
    """Weights & Biases; whatever fails there is said once and training goes on."""

    def __init__(
        self, run: RunConfig, run_dir: RunDir, run_id: str | None, last: LastLayer | None
    ) -> None:
        self._failed = False
        self._last = last
        self._run_dir, self._namespace = run_dir, run.logging.namespace
        self._step = 0
        self.id: str | None = run_id
        self._run: Any = None
        self._guard(lambda: self._start(run, run_dir))

    def _start(self, run: RunConfig, run_dir: RunDir) -> None:
        import wandb

        quiet = wandb.Settings(console="off", silent=True, x_disable_stats=True, init_timeout=30)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", run.logging.project),
            name=run_dir.path.name,
            dir=os.environ.get("WANDB_DIR", str(run_dir.path)),
            id=self.id,
            resume="allow",
            group=run.logging.group or None,
            job_type=run.name,
            config=unstructure(run),
            # what W&B read when this process first used it may be of another run
            mode=os.environ.get("WANDB_MODE"),  # type: ignore[arg-type]
            settings=quiet,
        )
        if run.logging.code:
            self._run.log_code(str(PACKAGE), include_fn=is_source)
        front = f"{self._namespace}/" if self._namespace else ""
        self._step_key = f"{front}step"
        self._run.define_metric(self._step_key)
        self._run.define_metric(f"{front}*", step_metric=self._step_key)
        self.id = self._run.id

    def write(self, row: Row) -> None:
        """Send a row; keys get their split, and the namespace, in front."""
        if self._run is None or self._failed:
            return
        self._step = row["step"]
        self._guard(lambda: self._run.log({self._step_key: row["step"], **self._named(row)}))

    def _named(self, row: Row) -> dict[str, float]:
        found = named(row, self._namespace)
        if self._last is None or row["split"] != "train":
            return found
        measured = self._last.measure(int(row["step"]))
        return found | {f"{self._namespace}/{key}": value for key, value in measured.items()}

    def _draw(self) -> None:
        """Histories, curves and last numbers, of runs with a namespace."""
        import wandb

        for chart in charts(self._run_dir, wandb.plot):
            self._run.log({f"{self._namespace}/{name}": made for name, made in chart.items()})
        last = {f"{self._namespace}/{k}": v for k, v in finals(self._run_dir).items()}
        self._run.log({self._step_key: self._step, **last})

    def _guard(self, action: Any) -> None:
        from wandb.errors import Error

        try:
            action()
        except (Error, *TROUBLES) as error:
            self._failed = True
            log.warning("W&B failed and is off for this run (%s); metrics.jsonl goes on.", error)

    def sync(self) -> None:
        """W&B keeps its own files."""

    def rewind(self, step: int) -> None:
        """Rows that were sent stay; later ones carry their step."""
        if self._last is not None:
            self._last.rewind(step)

    def close(self) -> None:
        """Finish the W&B run."""
        if self._run is not None and not self._failed and self._namespace:
            self._guard(self._draw)
        if self._run is not None and not self._failed:
            self._guard(self._run.finish)
        if self._last is not None:
            self._last.close()


def check_logging(config: LoggingConfig) -> None:
    """Refuse, before anything is written, a backend that cannot work.

    Raises:
        ConfigError: unwritable path, wandb not installed, or nobody logged in.
        nl.run.RunError: ``logging.path`` lies below something that is no directory.
    """
    if not config.enabled:
        return
    if config.backend == "json":
        assert config.path is not None
        writable_folder(Path(config.path).parent, "logging.path")
        if Path(config.path).is_dir():
            raise ConfigError(f"logging.path: {config.path} is a directory; name a file.")
        return
    if names := read_env_file():
        log.info("taken from .env: %s", ", ".join(names))
    if importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            "logging.backend: wandb is not installed; pip install 'nl[wandb]', or set "
            "logging.backend=json or logging.enabled=false."
        )
    mode = os.environ.get("WANDB_MODE", "online")
    if mode not in ("offline", "disabled", "dryrun") and not _logged_in():
        raise ConfigError(
            "logging.backend: wandb, but nobody is logged in; run `wandb login` or set "
            "WANDB_API_KEY, or WANDB_MODE=offline, or logging.enabled=false."
        )


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        hosts = netrc.netrc(str(path)).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    server = os.environ.get("WANDB_BASE_URL", "wandb")
    return any(host in server or "wandb" in host for host in hosts)


def open_sinks(
    run: RunConfig, run_dir: RunDir, *, start: int, wandb_id: str | None, model: Any = None
) -> tuple[list[Sink], str | None]:
    """All sinks of rank 0, and the W&B id to keep (None without W&B).

    Args:
        run: the configuration.
        run_dir: of the run.
        start: step that training begins after.
        wandb_id: of the run that goes on.
        model: what is trained, for what W&B gets of its last layer.
    """
    sinks: list[Sink] = [
        RecordSink(run_dir.metrics),
        ConsoleSink(run.train.steps, start),
    ]
    if run.logging.enabled and run.logging.backend == "json":
        sinks.append(JsonSink(Path(str(run.logging.path)), run_dir.metrics))
    if run.logging.enabled and run.logging.backend == "wandb":
        named_run = model is not None and run.logging.namespace
        last = LastLayer(model, run_dir.artifacts / FILE, start) if named_run else None
        wandb_sink = WandbSink(run, run_dir, wandb_id, last)
        sinks.append(wandb_sink)
        wandb_id = wandb_sink.id
    return sinks, wandb_id


def close_sinks(sinks: Sequence[Sink]) -> None:
    """Close every sink."""
    for sink in sinks:
        sink.close()
