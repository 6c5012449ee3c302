"""Needles in a haystack and their relatives, over a grid of lengths and depths. Floor 6.

Every sample is asked twice with one reading of its prompt: which of k numbers is most likely
(chance 1 / k), and is the right one what greedy decoding writes. Greedy decoding writes the answer
exactly when every token of it is the model's first choice after the ones before, so the second
question needs no decoding loop. With ``scoring=generate`` the model writes freely instead, and what
it wrote is parsed (``nl.eval.decode``): an answer in other tokens, or more words, shows there.
"""

from __future__ import annotations

import hashlib
import random
import time
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch import nn

from nl.config import register, require
from nl.config.groups import EvaluatorConfig
from nl.core.protocols import EvalRow
from nl.core.seeds import SeedBook
from nl.eval.context import EvalContext, Memorize, Tokenizer, check_memorize
from nl.eval.decode import write_answers
from nl.eval.haystack import NOISE, Needle, make_needle, sentences
from nl.eval.memorize import MemoryConfig, memory_rows
from nl.eval.progress import ProgressMeter
from nl.eval.puzzles import MAKERS, PLACES, Size, single
from nl.eval.rows import make_row, mean_and_stderr, save_json, wilson
from nl.eval.scoring import Item, Score, Scorer, primed, scorer

MAX_DOCUMENTS = 64
DISTRACTORS = 512
COUNTED = ("common", "frequent")
"""Tasks whose haystack is the words that are counted."""
Task = Literal[
    "single",
    "passkey",
    "multikey",
    "multivalue",
    "multiquery",
    "variables",
    "common",
    "frequent",
    "facts1",
    "facts2",
    "facts3",
]


@register("evaluator", "needle")
@dataclass(frozen=True, kw_only=True)
class NeedleConfig(EvaluatorConfig):
    """Needles in a haystack (the RULER family and bAbI facts), exact lengths, depth grid."""

    task: Task = "single"
    """single, passkey; multikey, multivalue, multiquery: several numbers; variables: a chain of
    assignments; common, frequent: words to count; facts1 to facts3: supporting facts of a story."""
    keys: int = 4
    """Facts that belong to a question, in tasks that have several."""
    lengths: tuple[int, ...] = (256, 512)
    """Tokens read before the answer."""
    depths: tuple[float, ...] = (0.1, 0.5, 0.9)
    """Share of the haystack in front of the needle, 0 to 1."""
    samples: int = 8
    """Samples per length and depth."""
    candidates: int = 8
    """Numbers to choose among; chance is 1 / candidates."""
    digits: int = 4
    """Digits of a number."""
    haystack: Literal["noise", "distractor", "text"] = "noise"
    """noise: a few plain sentences over and over. distractor: numbers of other keys. text: held-out
    documents. Tasks that count words are made of words."""
    scoring: Literal["likelihood", "generate"] = "likelihood"
    """likelihood: choice among candidates, and greedy match by log-probabilities. generate: the
    answer is decoded greedily and parsed, as RULER does it."""
    split: str = "test"
    """Split of the documents when haystack=text."""
    domain: str | None = None
    """Domain of the documents when haystack=text; null: the first one."""
    memorize: tuple[Memorize, ...] = ("off", "context")
    """Memorisation modes; oracle reads prompt and answer once before it is asked."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    """Which memories are written, how often, for how long."""

    def __post_init__(self) -> None:
        check_memorize(self.memorize)
        require(bool(self.lengths), "lengths: empty; name at least one.")
        require(
            bool(self.depths) and all(0 <= depth <= 1 for depth in self.depths),
            f"depths: {list(self.depths)}; numbers from 0 to 1.",
        )
        require(self.samples >= 1, f"samples: {self.samples}; must be >= 1.")
        require(1 <= self.digits <= 12, f"digits: {self.digits}; 1 to 12.")
        require(1 <= self.keys <= 64, f"keys: {self.keys}; 1 to 64.")
        require(
            self.task != "multikey" or self.keys <= 9 * 10 ** (self.digits - 1),
            f"keys: {self.keys}; there are fewer numbers of {self.digits} digits: raise digits.",
        )
        require(
            self.haystack == "noise" or self.task not in COUNTED,
            f"haystack: {self.haystack}; task {self.task} is made of words: leave haystack out.",
        )
        most = self.most_candidates
        require(
            self.scoring == "likelihood" or not self.memory.carry,
            "scoring: generate; every answer is written from a fresh State: set memory.carry=false "
            "or scoring=likelihood.",
        )
        require(
            2 <= self.candidates <= most,
            f"candidates: {self.candidates}; 2 to {most} (task {self.task}, {self.digits} digits, "
            f"{self.keys} keys).",
        )

    @property
    def most_candidates(self) -> int:
        """How many different answers there are."""
        if self.task.startswith("facts"):
            return len(PLACES) - 1
        numbers: int = 9 * 10 ** (self.digits - 1)
        if self.task in (*COUNTED, "variables"):
            return min(numbers, 200)
        return numbers // (self.keys if self.task in ("multivalue", "multiquery") else 1)

    def size(self, length: int) -> Size:
        """Of a puzzle in a prompt of so many tokens, each of which is a word at most."""
        return Size(self.candidates, self.digits, self.keys, length)

    @property
    def name(self) -> str:
        """Of the task in rows and files."""
        return self.haystack if self.task == "single" else f"{self.task}-{self.haystack}"

    def build(self) -> NeedleTest:
        """The evaluator."""
        return NeedleTest(self)


Measured = dict[str, tuple[list[float], float | None]]
"""By metric: a number per sample, and what chance scores."""
METRICS: dict[str, tuple[str, ...]] = {
    "likelihood": ("choice_accuracy", "exact_match", "answer_logprob"),
    "generate": ("generated_match", "generated_share"),
}
SHARES = ("choice_accuracy", "exact_match", "generated_match")
"""Metrics that are shares of samples, with an interval after Wilson."""


class Cell(NamedTuple):
    """One cell of the grid."""

    length: int
    depth: float
    needles: tuple[Needle, ...]


def make_grid(config: NeedleConfig, context: EvalContext) -> list[Cell]:
    """All samples, the same for every model: each has its own stream of (length, depth, number)."""
    book = SeedBook(context.seed)
    pool = _pool(config, context)
    samples = context.capped(config.samples)
    cells = []
    for length in config.lengths:
        for depth in config.depths:
            needles = []
            for number in range(samples):
                seed = book.seed("eval", "needle", length, repr(float(depth)), number)
                rng = random.Random(seed)
                hay = [] if config.task in COUNTED else _hay(pool, context.tokenizer, length, rng)
                needles.append(
                    make_needle(
                        context.tokenizer,
                        hay,
                        MAKERS[config.task](rng, config.size(length)),
                        length=length,
                        depth=depth,
                        rng=rng,
                    )
                )
            cells.append(Cell(length, depth, tuple(needles)))
    return cells


def _pool(config: NeedleConfig, context: EvalContext) -> list[list[str]]:
    """What haystacks are made of: the noise, or the sentences of each held-out document."""
    if config.haystack == "noise":
        return [list(NOISE)]
    if config.haystack == "distractor":
        rng = random.Random(SeedBook(context.seed).seed("eval", "distractors"))
        size = Size(2, config.digits, 1, 0)
        return [[single(rng, size).facts[0] for _ in range(DISTRACTORS)]]
    domain = config.domain or context.domains(config.split)[0]
    return [sentences(text) for text in context.texts(config.split, domain, MAX_DOCUMENTS)]


def _hay(pool: list[list[str]], tokenizer: Tokenizer, length: int, rng: random.Random) -> list[str]:
    """Sentences for at least ``length`` tokens, from a random document on, round and round."""
    found: list[str] = []
    size, place = 0, rng.randrange(len(pool))
    while size < length:
        for sentence in pool[place % len(pool)]:
            found.append(sentence)
            size += max(len(tokenizer.encode(sentence)) - 1, 1)
            if size >= length:
                break
        place += 1
    return found


@dataclass(frozen=True)
class NeedleTest:
    """The evaluator of ``NeedleConfig``; the heat maps go to ``needle_<name>.json``."""

    config: NeedleConfig

    def __call__(self, model: nn.Module, context: EvalContext) -> list[EvalRow]:
        """Rows per length, depth, memorisation mode and metric."""
        cells = make_grid(self.config, context)
        rows: list[EvalRow] = []
        maps: dict[str, dict[str, list[list[Any]]]] = {}
        intervals: dict[str, dict[str, list[list[Any]]]] = {}
        for mode in self.config.memorize:
            found = self._mode(model, context, mode, cells)
            rows += found
            memory, task = self.config.memory, self.config.name
            texts = [needle.prompt for cell in cells[-1:] for needle in cell.needles]
            rows += memory_rows("needle", task, model, context, mode, memory, texts)
            maps[mode] = {
                metric: self._grid([row.value for row in found if row.metric == metric])
                for metric in METRICS[self.config.scoring]
            }
            intervals[mode] = {
                metric: self._grid([interval(row) for row in found if row.metric == metric])
                for metric in METRICS[self.config.scoring]
                if metric in SHARES
            }
        save_json(
            context.output / f"needle_{self.config.name}.json",
            {
                "task": self.config.task,
                "haystack": self.config.haystack,
                "lengths": list(self.config.lengths),
                "depths": list(self.config.depths),
                "scoring": self.config.scoring,
                "samples": len(cells[0].needles),
                "chance": 1 / self.config.candidates,
                "memorize": maps,
                "intervals": intervals,
                "real_depths": [[needle.depth for needle in cell.needles] for cell in cells],
            },
        )
        return rows

    def _grid(self, values: list[Any]) -> list[list[Any]]:
        """[length][depth] from the order of the cells."""
        width = len(self.config.depths)
        return [values[at : at + width] for at in range(0, len(values), width)]

    def _mode(
        self, model: nn.Module, context: EvalContext, mode: Memorize, cells: list[Cell]
    ) -> list[EvalRow]:
        rows: list[EvalRow] = []
        memory = self.config.memory
        writing = self.config.scoring == "generate"
        each = 1 if writing else self.config.candidates
        total = sum(len(cell.needles) for cell in cells) * each
        with ProgressMeter(f"needle ({mode})", total, "prompts") as meter:
            judge = scorer(model, context, mode, meter.advance, memory)
            for cell in cells:
                start = time.monotonic()
                if writing:
                    measured = self._written(judge, context, mode, cell)
                    rows += self._rows(cell, mode, measured, time.monotonic() - start)
                    self._keep(context, cell, mode, measured)
                    continue
                items = [
                    primed(
                        Item(needle.prompt, value),
                        needle.prompt + needle.answer,
                        mode,
                        memory.steps,
                    )
                    for needle in cell.needles
                    for value in (needle.answer, *needle.others)
                ]
                measured = self._chosen(judge.score(items))
                rows += self._rows(cell, mode, measured, time.monotonic() - start)
                self._keep(context, cell, mode, measured)
        return rows

    def _keep(self, context: EvalContext, cell: Cell, mode: Memorize, measured: Measured) -> None:
        """Every sample in the evaluation's record."""
        task = f"{self.config.name}/{cell.length}/{cell.depth:g}"
        for number, needle in enumerate(cell.needles):
            values = {metric: found[number] for metric, (found, _) in measured.items()}
            asked = hashlib.sha256(repr((needle.prompt, needle.answer)).encode()).hexdigest()[:16]
            context.record.add(task, mode, f"{number}-{asked}", values)

    def _written(self, judge: Scorer, context: EvalContext, mode: Memorize, cell: Cell) -> Measured:
        """What greedy decoding wrote; every sample goes to a file, so that it can be read."""
        memory, answers = self.config.memory, [needle.answer for needle in cell.needles]
        prompts = [
            primed(Item(n.prompt, n.answer), n.prompt + n.answer, mode, memory.steps).context
            for n in cell.needles
        ]
        written = write_answers(judge, context.tokenizer, prompts, answers)
        place = {"memorize": mode, "length": cell.length, "depth": cell.depth}
        decode = context.tokenizer.decode
        save_json(
            context.output / f"written_{self.config.name}_{mode}_{cell.length}_{cell.depth:g}.json",
            [
                {**place, "sample": i, "answer": decode(list(answers[i])), **w._asdict()}
                for i, w in enumerate(written)
            ],
        )
        return {
            "generated_match": ([float(one.exact) for one in written], self._exact_chance),
            "generated_share": ([one.share for one in written], None),
        }

    def _chosen(self, scores: list[Score]) -> Measured:
        """Choice among the candidates, and whether the answer is what greedy decoding writes."""
        width = self.config.candidates
        groups = [scores[at : at + width] for at in range(0, len(scores), width)]
        return {
            "choice_accuracy": ([choice_credit(group) for group in groups], 1 / width),
            "exact_match": ([float(group[0].greedy) for group in groups], self._exact_chance),
            "answer_logprob": ([group[0].total for group in groups], None),
        }

    @property
    def _exact_chance(self) -> float | None:
        """What writing a random number, or place, scores; None for answers of several words."""
        if self.config.task.startswith("facts"):
            return 1 / len(PLACES)
        one = self.config.task in ("single", "passkey", "multikey")
        return float(1 / (9 * 10 ** (self.config.digits - 1))) if one else None

    def _rows(
        self, cell: Cell, mode: Memorize, measured: Measured, seconds: float
    ) -> list[EvalRow]:
        rows = []
        policy = self.config.memory.policy("sample")
        for metric, (values, chance) in measured.items():
            mean, error = mean_and_stderr(values)
            ends = ""
            if metric in SHARES:
                low, high = wilson(sum(values), len(values))
                ends = f"; 95 % {low:.3f} to {high:.3f} (Wilson)"
            rows.append(
                make_row(
                    "needle",
                    f"{self.config.name}/{cell.length}/{cell.depth:g}",
                    metric,
                    mean,
                    len(values),
                    stderr=error,
                    seconds=seconds,
                    memorize=mode,
                    chance=chance,
                    note=("State fresh per sample" if mode == "off" else policy) + ends,
                )
            )
        return rows


def interval(row: EvalRow) -> tuple[float, float] | None:
    """The 95 % interval of a share (Wilson)."""
    return None if row.value is None else wilson(row.value * row.n, row.n)


def choice_credit(scores: list[Score]) -> float:
    """1 when the first score is the best alone; shared among equals, so that ties score chance."""
    totals = [score.total for score in scores]
    best = max(totals)
    return 1 / totals.count(best) if totals[0] == best else 0.0
