"""LAMBADA-style cloze tasks from held-out documents, as local lm_eval tasks. Floor 6.

The last word of a passage is asked for; it stands earlier in the passage, so a model that uses its
context can know it. Two tasks per domain: the word itself (exact greedy match and perplexity of the
word), and a choice among words that end other passages of the same set (chance 1 / k).
"""

from __future__ import annotations

import itertools
import json
import random
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from nl.config import ConfigError
from nl.core.seeds import SeedBook
from nl.eval.context import EvalContext
from nl.eval.rows import save_json

MIN_LETTERS = 4
MIN_DISTANCE = 5
WORD = re.compile(r"[A-Za-z]+")
TARGET = re.compile(rf"(?<=\S )[A-Za-z]{{{MIN_LETTERS},}}\b")


@dataclass(frozen=True, kw_only=True)
class ClozeSettings:
    """How passages are made."""

    split: str
    passages: int
    words: int
    candidates: int


@dataclass(frozen=True)
class Passage:
    """Text up to one space before ``answer``."""

    context: str
    answer: str


@dataclass(frozen=True)
class PassageSet:
    """What one domain is asked.

    Attributes:
        passages: the questions.
        answers: different last words of these and of further passages, the wrong candidates'
            source.
    """

    passages: tuple[Passage, ...]
    answers: tuple[str, ...]


def draw_passages(text: str, words: int, rng: random.Random) -> list[Passage]:
    """Passages of ``words`` words whose last word stood before, in random order, none overlapping.

    The word has at least four letters and did not occur in the five words just before it.
    """
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    starts = {start: index for index, (start, _) in enumerate(spans)}
    places = [m for m in TARGET.finditer(text) if starts.get(m.start(), 0) >= words]
    rng.shuffle(places)
    taken: set[int] = set()
    found = []
    for match in places:
        index = starts[match.start()]
        reach = range(index - words, index + 1)
        if not taken.isdisjoint(reach):
            continue
        first = spans[index - words][0]
        near = spans[index - MIN_DISTANCE][0]
        word = match.group()
        early, late = text[first:near], text[near : match.start()]
        if word in WORD.findall(early) and word not in WORD.findall(late):
            taken.update(reach)
            found.append(Passage(text[first : match.start() - 1], word))
    return found


def collect_passages(context: EvalContext, domain: str, settings: ClozeSettings) -> PassageSet:
    """At most ``settings.passages`` of a domain (0: all), from as many documents as possible.

    Raises:
        ConfigError: fewer different words than candidates.
    """
    book = SeedBook(context.seed)
    texts = context.texts(settings.split, domain)
    random.Random(book.seed("eval", "cloze", domain, "order")).shuffle(texts)
    drawn = []
    for number, text in enumerate(texts):
        rng = random.Random(book.seed("eval", "cloze", domain, number))
        drawn.append(draw_passages(text, settings.words, rng))
        if settings.passages and sum(map(bool, drawn)) == settings.passages:
            break
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*drawn))
    found = [passage for passage in rounds if passage is not None]
    answers = sorted({passage.answer for passage in found})
    if len(answers) < settings.candidates:
        raise ConfigError(
            f"cloze: split {settings.split}, domain {domain} gives {len(found)} passages of "
            f"{settings.words} words with {len(answers)} different last words; at least "
            f"{settings.candidates} are needed. Use shorter passages or more documents."
        )
    return PassageSet(tuple(found[: settings.passages or None]), tuple(answers))


def write_tasks(
    folder: Path, domain: str, passages: PassageSet, *, candidates: int, seed: int
) -> tuple[str, str]:
    """Write one domain's JSONL and its two task YAMLs.

    Args:
        folder: for the files and lm_eval's own cache of them.
        domain: names the tasks ``cloze_<domain>`` and ``cloze_<domain>_choice``.
        passages: what is asked, and the words to choose among.
        candidates: words to choose among.
        seed: of the order and choice of the wrong words.

    Returns:
        The names of both tasks.
    """
    rng = random.Random(SeedBook(seed).seed("eval", "cloze", domain, "candidates"))
    lines = []
    for passage in passages.passages:
        others = [answer for answer in passages.answers if answer != passage.answer]
        choices = [*rng.sample(others, candidates - 1), passage.answer]
        rng.shuffle(choices)
        label = choices.index(passage.answer)
        lines.append(json.dumps(asdict(passage) | {"choices": choices, "label": label}))
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"cloze_{domain}.jsonl"
    data.write_text("\n".join(lines) + "\n")
    base = {
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(data.resolve())},
            "cache_dir": str((folder / ".cache").resolve()),
        },
        "test_split": "test",
        "doc_to_text": "context",
        "metadata": {"version": 1},
    }
    word = base | {
        "task": f"cloze_{domain}",
        "output_type": "loglikelihood",
        "doc_to_target": " {{answer}}",  # this output type adds no delimiter
        "metric_list": [
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
        ],
    }
    choice = base | {
        "task": f"cloze_{domain}_choice",
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "target_delimiter": " ",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    for task in (word, choice):
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
    return str(word["task"]), str(choice["task"])


def make_cloze(context: EvalContext, folder: Path, settings: ClozeSettings) -> list[str]:
    """Write the cloze tasks of every domain of the split; their names."""
    names: list[str] = []
    counts = {}
    for domain in context.domains(settings.split):
        passages = collect_passages(context, domain, settings)
        counts[domain] = len(passages.passages)
        names += write_tasks(
            folder, domain, passages, candidates=settings.candidates, seed=context.seed
        )
    save_json(folder / "cloze.json", {"settings": asdict(settings), "passages": counts})
    return names
