"""Zero-shot tasks through lm_eval: local cloze tasks and the hub's, official prompts. Floor 6."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from nl.config import ConfigError, register, require
from nl.config.groups import EvaluatorConfig
from nl.config.registry import unknown
from nl.core.logs import get_logger
from nl.core.protocols import EvalRow
from nl.eval.cloze import ClozeSettings, make_cloze
from nl.eval.context import EvalContext, Memorize, check_memorize
from nl.eval.harness import Answers, harness_model
from nl.eval.hub_tasks import (
    HUB_TASKS,
    expand,
    harness_folder,
    offline_if_unreachable,
    recipe,
    task_folder,
)
from nl.eval.memorize import MemoryConfig, memory_rows
from nl.eval.requests import Begin
from nl.eval.rows import make_row
from nl.eval.zeroshot_rows import (
    harness_facts,
    keep_samples,
    save_samples,
    task_facts,
    task_rows,
    uniform_guess,
)

BOOTSTRAP = 1000


@register("evaluator", "zeroshot")
@dataclass(frozen=True, kw_only=True)
class ZeroshotConfig(EvaluatorConfig):
    """Zero-shot tasks through lm_eval."""

    tasks: tuple[str, ...] = ("cloze",)
    """cloze (made from held-out documents), tasks of the hub (piqa, hellaswag, ...; all: every
    one), or YAML files of lm_eval's format."""
    samples: int = 64
    """Samples per task; 0: all."""
    memorize: tuple[Memorize, ...] = ("off", "context")
    """Memorisation modes; oracle reads each question with its right answer first."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    """Which memories are written, how often, for how long."""
    split: str = "test"
    """Split of the documents that cloze passages come from."""
    words: int = 60
    """Words of a cloze passage before the one that is asked for."""
    candidates: int = 4
    """Words to choose among in the cloze choice task; chance is 1 / candidates."""
    data_dir: str | None = None
    """Local copies of hub data sets: <data_dir>/<task>/<split>.jsonl."""
    begin: Begin = "text"
    """text: as lm_eval's hf model, nothing stands before a context. document: the mark that ends a
    document does, as in training."""
    max_length: int = 2048
    """Tokens read for one answer, longer contexts lose their beginning and longer texts are scored
    in windows, as by lm_eval's hf model; 0: whole texts, State carried through."""

    def __post_init__(self) -> None:
        check_memorize(self.memorize)
        require(bool(self.tasks), "tasks: empty; name at least one.")
        for name in expand(self.tasks):
            known = name in task_names() or name.endswith(".yaml")
            require(known, unknown("tasks", name, task_names()))
        require(self.max_length >= 0, f"max_length: {self.max_length}; must be >= 0 (0: no limit).")
        require(self.samples >= 0, f"samples: {self.samples}; must be >= 0 (0: all).")
        require(self.words >= 10, f"words: {self.words}; must be >= 10.")
        require(self.candidates >= 2, f"candidates: {self.candidates}; must be >= 2.")

    def build(self) -> Zeroshot:
        """The evaluator."""
        return Zeroshot(self)


def task_names() -> list[str]:
    """All names that ``tasks`` may hold, beside files."""
    return ["cloze", "all", *HUB_TASKS]


@dataclass(frozen=True)
class Zeroshot:
    """The evaluator of ``ZeroshotConfig``; samples go to ``samples_<task>_<memorize>.jsonl``."""

    config: ZeroshotConfig

    def __call__(self, model: nn.Module, context: EvalContext) -> list[EvalRow]:
        """Rows per task, memorisation mode and metric; a task without data says so in its note.

        Raises:
            ConfigError: no task could be run.
        """
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # the meter below is ours
        harness_folder()
        samples = context.capped(self.config.samples)
        rows: list[EvalRow] = []
        missing: list[str] = []
        names = expand(self.config.tasks)
        context.record.details.update(harness_facts(self.config))
        for name in names:
            try:
                found = self._prepare(name, context, samples)
            except (ConfigError, OSError) as error:
                reason = explain(name, error)
                missing.append(reason)
                rows.append(make_row("zeroshot", name, "acc", None, 0, note=reason))
                continue
            for task in found:
                for mode in self.config.memorize:
                    rows += run_task(model, context, mode, task, samples, self.config)
        if len(missing) == len(names):
            raise ConfigError("no task could be run:\n" + "\n".join(missing))
        for reason in missing:
            get_logger(__name__).warning("left out: %s", reason)
        return rows

    def _prepare(self, name: str, context: EvalContext, samples: int) -> list[Any]:
        """The lm_eval task objects of one of our names, their data loaded."""
        from lm_eval.tasks import TaskManager

        folder = context.output / "tasks"
        if name == "cloze":
            settings = ClozeSettings(
                split=self.config.split,
                passages=samples,
                words=self.config.words,
                candidates=self.config.candidates,
            )
            names, place = make_cloze(context, folder, settings), folder
        elif name.endswith(".yaml"):
            if not Path(name).is_file():
                raise ConfigError(f"{name}: no such file; give a task of lm_eval's format.")
            names, place = [str(Path(name).resolve())], Path(name).resolve().parent
        else:
            data_dir = Path(self.config.data_dir) if self.config.data_dir else None
            names, place = [HUB_TASKS[name].name], task_folder(name, folder, data_dir)
            if data_dir is None:
                offline_if_unreachable()
        manager = TaskManager(include_path=str(place), include_defaults=False)
        try:
            return list(manager.load(names)["tasks"].values())
        except (yaml.YAMLError, ValueError, KeyError) as error:
            if not name.endswith(".yaml"):
                raise
            where = " ".join(str(error).split())
            raise ConfigError(f"{name}: no task of lm_eval's format ({where}).") from error


def explain(name: str, error: Exception) -> str:
    """One line: what was looked for and what to do."""
    if isinstance(error, ConfigError):
        return str(error)
    if name not in HUB_TASKS:
        return f"{name}: {' '.join(str(error).split())}"
    task = HUB_TASKS[name]
    return f"{name}: {task.dataset} is neither cached nor reachable; {recipe(name)}"


def run_task(
    model: nn.Module,
    context: EvalContext,
    mode: Memorize,
    task: Any,
    samples: int,
    config: ZeroshotConfig,
) -> list[EvalRow]:
    """One lm_eval task in one memorisation mode."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # its bootstrap would fork a threaded process
    name, start = task.task_name, time.monotonic()
    title = f"zeroshot {name}"

    def gold(request: Any, requests: Sequence[Any]) -> Any:
        return right_request(task, request, requests)

    def right_text(request: Any) -> str:
        target = task.doc_to_target(request.doc)
        first = target[0] if isinstance(target, list) and target else target
        text = str(first)
        return text if text[:1].isspace() else task.config.target_delimiter + text

    memory = config.memory
    longest, most = config.max_length, positions_of(model)
    longest = min(longest, most) if longest and most else longest or most
    answers = Answers(
        model, context, mode, gold, memory, config.begin, longest, answer=right_text, title=title
    )
    with own_progress_only():
        result = simple_evaluate(
            model=harness_model(answers),
            tasks=[task],
            task_manager=TaskManager(include_defaults=False),  # else it indexes thousands of tasks
            limit=samples or None,
            bootstrap_iters=BOOTSTRAP,
            log_samples=True,
            random_seed=context.seed,
            numpy_random_seed=context.seed,
            torch_random_seed=context.seed,
            fewshot_random_seed=context.seed,
        )
    logged = sorted(result["samples"][name], key=lambda sample: sample["doc_id"])
    save_samples(context.output / f"samples_{name}_{mode}.jsonl", logged)
    keep_samples(context, name, mode, logged)
    context.record.details["tasks"][name] = task_facts(task, result, logged)
    guess = uniform_guess(logged, answers.encoding)
    rows = task_rows(name, mode, result["results"][name], logged, time.monotonic() - start)
    policy = memory.policy("sample", mode)
    note = f"{policy}; {answers.encoding.words()}"
    rows = [
        replace(row, chance=guess.get(row.metric, row.chance), note=_joined(row.note, note))
        for row in rows
    ]
    return rows + memory_rows("zeroshot", name, model, context, mode, memory, answers.texts)


def positions_of(model: nn.Module) -> int:
    """Positions that a model has learned a vector for; 0: it reads rows of any length."""
    config: Any = getattr(model, "config", None)
    learned = getattr(config, "positions", "") == "learned"
    return int(config.max_positions) if learned else 0


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


@contextmanager
def own_progress_only() -> Iterator[None]:
    """Keep lm_eval's bars and prints off the terminal: our meter shows the work.

    Every rank gets its result: it looks at the launcher's LOCAL_RANK, and gives others nothing.
    """
    from lm_eval.api import task

    places = (task, import_module("tqdm"))
    before = [place.tqdm for place in places]
    local = os.environ.pop("LOCAL_RANK", None)
    try:
        for place, bar in zip(places, before, strict=True):
            place.tqdm = partial(bar, disable=True)
        with redirect_stdout(StringIO()):
            yield
    finally:
        if local is not None:
            os.environ["LOCAL_RANK"] = local
        for place, bar in zip(places, before, strict=True):
            place.tqdm = bar


def right_request(task: Any, request: Any, requests: Sequence[Any]) -> Any:
    """The request of the same document whose continuation is the right one."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return request
    # with one context per choice (winogrande) it is the text, not the target, that holds the label
    several = bool(getattr(task, "multiple_input", 0))
    target = task.doc_to_text(request.doc) if several else task.doc_to_target(request.doc)
    if isinstance(target, str):
        target = task.doc_to_choice(request.doc).index(target)
    same = [other for other in requests if other.doc_id == request.doc_id]
    return next(other for other in same if other.idx == target)
