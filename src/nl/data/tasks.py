"""stream=tasks: a sequence of tasks made of domains and permuted vocabularies. Floor 1.

A task reads one or several domains of a data directory; before a model sees a token, its id goes
through the permutation of the task, so that the same text can be as many languages as wanted. What
separates tasks is hard or blurred: across a boundary the share of the next task then rises from 0
to 1. Everything follows from (configuration, data, seed, row): no tables, no random stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from nl.config import ConfigError, register, require
from nl.config.groups import StreamConfig
from nl.core.batch import IGNORE
from nl.core.protocols import Stream
from nl.core.seeds import SeedBook
from nl.data.manifest import data_tokenizer, read_manifest
from nl.data.order import Ints, SequentialPlan, Shuffler
from nl.data.phases import PhaseConfig
from nl.data.replay import Memory, ReplayStream, Store
from nl.data.shard_stream import boundaries
from nl.data.stream import Boundaries, RowStream
from nl.data.windows import TokenWindows

Vocabulary = Literal["plain", "unique", "repeat", "drift"]


@register("stream", "tasks")
@dataclass(frozen=True, kw_only=True)
class TaskStreamConfig(StreamConfig):
    """Tasks one after another, then from the first again; a run's seed orders windows only."""

    path: str
    """Data directory with a manifest.json, as scripts/data/shard_corpus.py writes it."""
    tasks: int = 10
    """Number of tasks."""
    steps: int = 100
    """Global micro-batches of a task: optimizer steps times train.grad_accum; see ``tokens``."""
    tokens: int = 0
    """Token budget of a task instead of ``steps``, rounded up to whole micro-batches; 0: steps."""
    passes: int = 1
    """How often all tasks together may read a domain's text; what needs more is refused."""
    domains: tuple[str, ...] = ()
    """Domains of the data, in this order; empty: all. One that is missing is an error."""
    schedule: Literal["round_robin", "blocks", "custom"] = "round_robin"
    """Domain of a task: each in turn; ``block`` tasks of each in turn; or by ``custom``."""
    block: int = 5
    """Tasks that read a domain before the next one (schedule=blocks)."""
    custom: tuple[str, ...] = ()
    """Domain of every task (schedule=custom); repeated where there are more tasks."""
    mix: int = 1
    """Domains of a task, in equal shares: that of the schedule and others drawn with
    ``environment``."""
    vocabulary: Vocabulary = "plain"
    """plain: ids as they are. unique: every task has a permutation of its own. repeat: ``repeat``
    permutations in turn. drift: each task swaps ``swaps`` more pairs of ids than the one before.
    Special tokens stay."""
    repeat: int = 4
    """Permutations that recur (vocabulary=repeat)."""
    swaps: int = 150
    """Transpositions from one task to the next (vocabulary=drift)."""
    blur: float = 0.0
    """Share of a task over which a boundary is blurred, half of it on either side; 0: hard."""
    joint: bool = False
    """All tasks at once, row by row in turn: what a model could know of all of them."""
    only: int | None = None
    """Read this task alone, as often as there are tasks: what it teaches by itself."""
    announce: bool = True
    """Whether batches say which task they are of (``phase``); false: task-free."""
    capacity: int = 0
    """Rows of earlier tasks that are stored for replay; 0: none."""
    replay: float = 0.0
    """Share of every batch that is drawn from the store; a controller may change it."""
    memory: Memory = "balanced"
    """What is stored and drawn, as in stream=replay; task-free: reservoir or loss."""
    environment: int = 0
    """Seed of permutations and mixtures: part of the tasks, not of a run."""
    seq_len: int = 64
    """Tokens per row."""
    batch_size: int = 32
    """Rows per micro-batch, over all ranks."""
    documents: Literal["ignore", "reset"] = "ignore"
    """reset: a document that begins inside a row begins with a fresh State and knows nothing of
    the one before; the last token of a document has no target."""
    verify: Literal["full", "sample", "header"] | bool = True
    """How much of every shard is compared with the manifest when it is opened. true or full: its
    SHA-256; sample: the digests of a few blocks, drawn anew each time; false or header: sizes and
    header."""

    def __post_init__(self) -> None:
        sizes = ("tasks", "steps", "passes", "block", "mix", "repeat", "swaps", "seq_len")
        for name in (*sizes, "batch_size"):
            value = getattr(self, name)
            require(value >= 1, f"{name}: {value}; must be >= 1.")
        require(self.tokens >= 0, f"tokens: {self.tokens}; must be >= 0.")
        require(0 <= self.blur <= 1, f"blur: {self.blur}; must be in [0, 1].")
        _used(self, "block", 5, self.schedule == "blocks", "schedule=blocks")
        _used(self, "custom", (), self.schedule == "custom", "schedule=custom")
        _used(self, "repeat", 4, self.vocabulary == "repeat", "vocabulary=repeat")
        _used(self, "swaps", 150, self.vocabulary == "drift", "vocabulary=drift")
        _used(self, "steps", 100, not self.tokens, "tokens=0")
        alone = self.only is None or 0 <= self.only < self.tasks
        require(alone, f"only: {self.only}; must be 0 to {self.tasks - 1}.")
        once = not (self.joint and self.only is not None)
        require(once, "only, joint: tasks are read one after another, at once, or one alone.")
        apart = self.only is None and not self.joint
        _used(self, "blur", 0.0, apart, "tasks that follow one another (joint, only)")
        _used(self, "capacity", 0, apart, "tasks that follow one another (joint, only)")
        require(self.capacity >= 0, f"capacity: {self.capacity}; must be >= 0.")
        require(0 <= self.replay < 1, f"replay: {self.replay}; must be in [0, 1).")
        _used(self, "replay", 0.0, self.capacity > 0, "capacity of 1 or more")
        _used(self, "memory", "balanced", self.capacity > 0, "capacity of 1 or more")
        room = not self.capacity or self.memory != "balanced" or self.capacity >= self.tasks
        require(room, f"capacity: {self.capacity}; balanced needs a row for each task.")
        named = not self.capacity or self.announce or self.memory != "balanced"
        require(named, "memory: balanced; needs to know the task: set memory=reservoir or loss.")
        needed = self.schedule != "custom" or bool(self.custom)
        require(needed, "custom: empty; name the domain of every task (schedule=custom).")
        count = len(self.custom)
        require(count <= self.tasks, f"custom: {count} domains; there are {self.tasks} tasks.")
        unique = len(set(self.domains)) == len(self.domains)
        require(unique, f"domains: {list(self.domains)}; name each once.")

    @property
    def task_steps(self) -> int:
        """Micro-batches of a task."""
        if not self.tokens:
            return self.steps
        return -(-self.tokens // (self.seq_len * self.batch_size))

    @property
    def phases(self) -> tuple[PhaseConfig, ...]:
        """The tasks as phases, in order."""
        named = ("+".join(task.domains) for task in self.table)
        return tuple(PhaseConfig(domain=name, steps=self.task_steps) for name in named)

    @cached_property
    def table(self) -> tuple[Task, ...]:
        """The tasks.

        Raises:
            ConfigError: a domain that the data does not have, or fewer domains than ``mix``.
        """
        known = tuple(read_manifest(self.path).splits.get("train", {}))
        names = self.domains or known
        for name in (*names, *self.custom):
            require(
                name in names and name in known,
                f"{'stream.domains' if name in names else 'stream.custom'}: {name!r} is none of "
                f"{list(names if name in known else known)}; a task "
                "without its data would be another benchmark: name what is there, or add it.",
            )
        fits = self.mix <= len(names)
        require(
            fits,
            f"stream.mix: {self.mix}; {self.path} has {len(names)} domains: {list(names)}.",
        )
        rng = np.random.Generator(np.random.Philox(SeedBook(self.environment).seed("mixtures")))
        tasks = []
        for number in range(self.tasks):
            first = self._domain(number, names)
            others = [name for name in names if name != first]
            drawn = [others[i] for i in rng.permutation(len(others))[: self.mix - 1]]
            kept = number % self.repeat if self.vocabulary == "repeat" else number
            order = 0 if self.vocabulary == "plain" else kept
            tasks.append(Task(f"task_{number:02d}", (first, *drawn), order))
        return tuple(tasks)

    def _domain(self, number: int, names: tuple[str, ...]) -> str:
        if self.schedule == "custom":
            return self.custom[number % len(self.custom)]
        turn = number // self.block if self.schedule == "blocks" else number
        return names[turn % len(names)]

    @cached_property
    def distinct(self) -> tuple[Task, ...]:
        """Tasks that differ from all before them in domains or vocabulary."""
        first: dict[tuple[Any, ...], Task] = {}
        for task in self.table:
            first.setdefault((task.domains, task.order), task)
        return tuple(first.values())

    def held_out(self, phase: int) -> str:
        """The validation split of the task of a phase."""
        task = self.table[phase % self.tasks if self.only is None else self.only]
        same = (other.name for other in self.distinct
                if (other.domains, other.order) == (task.domains, task.order))  # fmt: skip
        return f"val/{next(same)}"

    def splits(self) -> tuple[str, ...]:
        """``train`` and one ``val/<task>`` per distinct task; ``test/<task>`` can be built too."""
        return ("train", *(f"val/{task.name}" for task in self.distinct))

    def vocab_size(self) -> int | None:
        """The tokenizer's vocabulary."""
        return read_manifest(self.path).tokenizer.vocab_size

    def build(self, split: str, *, seed: int, rank: int, world: int) -> Stream:
        """The stream of ``train`` (endless), or of ``val/<task>``, ``test/<task>`` (once)."""
        name, _, wanted = split.partition("/")
        tasks = {task.name: task for task in self.table}
        if name not in ("train", "val", "test") or (wanted not in tasks) == (name != "train"):
            raise ConfigError(
                f"split {split!r} of {self.path}: use train, val/<task> or test/<task> with "
                f"{', '.join(tasks)}."
            )
        chosen = (tasks[wanted],) if wanted else self.table
        domains = tuple(dict.fromkeys(d for task in chosen for d in task.domains))
        windows = TokenWindows(self.path, name, domains, self.seq_len, self.verify)
        fetch = TaskWindows(windows, orders(self))
        plan: TaskPlan | _OneTask
        if wanted:
            plan, order = _OneTask(windows.sizes, len(domains) * tasks[wanted].order), "in order"
        else:
            plan, order = TaskPlan(self, windows.names, windows.sizes, seed), f"seed {seed}"
        identity = f"{split} {windows.digest}, {order}, {self._environment()}"
        found = fetch.boundaries(boundaries(windows, plan, self.documents))
        if self.capacity and not wanted:
            return ReplayStream(
                plan,
                fetch,
                store=Store(self.capacity, self.memory, SeedBook(seed).seed("replay")),
                counts=(
                    self.batch_size,
                    round(self.replay * self.batch_size),
                    self.batch_size - 1,
                ),
                place=(rank, world),
                identity=identity,
                found=found,
            )
        return RowStream(
            plan,
            fetch,
            batch_size=self.batch_size,
            rank=rank,
            world=world,
            identity=identity,
            boundaries=found,
        )

    def _environment(self) -> str:
        """What the tasks are, without where the data lies and how it is checked."""
        shown = {k: v for k, v in vars(self).items() if k not in ("path", "verify", "passes")}
        names = {k: v for k, v in shown.items() if k in self.__dataclass_fields__}
        return f"tasks {names}"


@dataclass(frozen=True)
class Task:
    """One task: where its text is from and which permutation its ids go through."""

    name: str
    domains: tuple[str, ...]
    order: int


def _used(config: Any, name: str, default: object, used: bool, where: str) -> None:
    value = getattr(config, name)
    shown = list(value) if isinstance(value, tuple) else value
    require(used or value == default, f"{name}: {shown}; has no effect without {where}.")


def orders(config: TaskStreamConfig) -> Tensor:
    """Permutations of the vocabulary, (orders, V) int32: row o gives the new id of every id."""
    tokenizer = data_tokenizer(config.path)
    size = read_manifest(config.path).tokenizer.vocab_size
    fixed = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id}
    movable = np.array([i for i in range(size) if i not in fixed], dtype=np.int64)
    count = 1 + max(task.order for task in config.table)
    found = np.tile(np.arange(size, dtype=np.int64), (count, 1))
    if config.vocabulary == "plain":
        return torch.from_numpy(found).int()
    book = SeedBook(config.environment)
    for number, row in enumerate(found):
        rng = np.random.Generator(np.random.Philox(book.seed("vocabulary", number)))
        if config.vocabulary == "drift" and number:
            row[:] = found[number - 1]
            for one, two in rng.choice(movable, (config.swaps, 2)).tolist():
                row[one], row[two] = row[two], row[one]
        else:
            row[movable] = movable[rng.permutation(movable.size)]
    return torch.from_numpy(found).int()


class TaskPlan:
    """Tasks in turn; a domain goes on where the last task that reads it stopped.

    ``locate`` gives ``domain + domains * order`` as the source of a row.
    """

    total: int | None = None

    def __init__(
        self, config: TaskStreamConfig, names: list[str], sizes: list[int], seed: int
    ) -> None:
        table = config.table
        self.rows = config.task_steps * config.batch_size
        self.ramp = 2 * int(config.blur * self.rows / 2)
        self.count, self.mix, self.domains = len(table), config.mix, len(names)
        self.joint, self.only = config.joint, config.only
        self._tags = [{"domain": "+".join(t.domains), "task": t.name} for t in table]
        self._told = config.announce
        self._members = np.array([[names.index(d) for d in t.domains] for t in table])
        self._orders = np.array([task.order for task in table], dtype=np.int64)
        each = -(-(self.rows - np.arange(self.mix)) // self.mix)
        read = np.zeros((self.count, len(names)), dtype=np.int64)
        for task, members in enumerate(self._members):
            if config.only in (None, task):
                np.add.at(read[task], members, each)
        self._before = np.cumsum(read, axis=0) - read
        self.per_cycle = read.sum(axis=0)
        self._shuffle = Shuffler(sizes, names, seed)

    def place(self, rows: Ints) -> tuple[Ints, Ints, Ints]:
        """Of global rows: the repetition of all tasks, the task, the row's number in the task."""
        if self.only is not None:
            cycle, inside = np.divmod(rows, self.rows)
            return cycle, np.full_like(rows, self.only), inside
        cycle, row = np.divmod(rows, self.rows * self.count)
        if self.joint:
            inside, task = np.divmod(row, self.count)
            return cycle, task, inside
        task, inside = np.divmod(row, self.rows)
        if not self.ramp:
            return cycle, task, inside
        later, step = np.divmod(row + self.ramp // 2, self.rows)
        blurred = (step < self.ramp) & (later >= 1) & (later < self.count)
        new = step * step // (2 * self.ramp)  # rows of the later task before this one
        is_new = (step + 1) ** 2 // (2 * self.ramp) > new
        old = self.rows - self.ramp // 2 + step - new
        task = np.where(blurred, np.where(is_new, later, later - 1), task)
        return cycle, task, np.where(blurred, np.where(is_new, new, old), inside)

    def locate(self, rows: Ints) -> tuple[Ints, Ints]:
        """See ``Plan.locate``."""
        cycle, task, inside = self.place(rows)
        turn, member = np.divmod(inside, self.mix)
        domain = self._members[task, member]
        draw = cycle * self.per_cycle[domain] + self._before[task, domain] + turn
        return domain + self.domains * self._orders[task], self._shuffle(domain, draw)

    def tags(self, row: int) -> dict[str, Any]:
        """``phase`` counts tasks on over repetitions, by where a hard boundary would be."""
        if not self._told or self.joint:
            return {}
        number = row // self.rows
        if self.only is not None:
            return {"phase": number, **self._tags[self.only]}
        return {"phase": number, **self._tags[number % self.count]}


class _OneTask(SequentialPlan):
    """Held-out windows of one task, ``shift`` is what its permutation adds to a source."""

    def __init__(self, sizes: list[int], shift: int) -> None:
        super().__init__(sizes)
        self.shift = shift

    def locate(self, rows: Ints) -> tuple[Ints, Ints]:
        source, index = super().locate(rows)
        return source + self.shift, index


class TaskWindows:
    """Windows whose ids went through the permutation that their source names."""

    def __init__(self, windows: TokenWindows, orders: Tensor) -> None:
        self.windows, self.orders = windows, orders
        self.rows_at_once = windows.rows_at_once
        self.plain = len(orders) == 1 and bool((orders[0] == torch.arange(orders.shape[1])).all())

    def __call__(self, source: Ints, index: Ints) -> tuple[Tensor, Tensor]:
        """Inputs and targets, both (B, seq_len) int32; ``IGNORE`` stays."""
        order, domain = np.divmod(source, len(self.windows.names))
        inputs, targets = self.windows(domain, index)
        if self.plain:
            return inputs, targets
        row = torch.from_numpy(order)[:, None]
        scored = targets != IGNORE
        moved = self.orders[row, targets.long() * scored]
        return self.orders[row, inputs.long()], torch.where(scored, moved, targets)

    def boundaries(self, found: Boundaries | None) -> Boundaries | None:
        """``found`` for sources that name a permutation too."""
        if found is None:
            return None
        count = len(self.windows.names)
        return lambda rows, source, index: found(rows, source % count, index)
