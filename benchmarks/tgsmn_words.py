"""What the study of task streams says in words, each difference by its interval."""

from __future__ import annotations

from collections.abc import Mapping

import study
from tgsmn_read import clear, difference
from tgsmn_tables import COMPARED, Row, name_of, verdict

from nl.eval.continual_summary import Interval, interval

WORDS = (
    "Forgetting: final loss minus the lowest since the task was learned. Share lost: of what the "
    "tasks before the last had gained over the untrained model right after they were learned, how "
    "much was gone at the end; above 1, more than nothing is known wrong. Loss while learning: on "
    "8 held-out windows of the current task, mean of every fifth step. Stability gap: the worst "
    "loss on earlier tasks within a task minus that at its end, on 8 windows. Intransigence: loss "
    "right after a task was learned, minus that of the joint dense model at its end."
)
LANGUAGES = (
    "Task i + 5 reads other text through the permutation of task i. FWT, in two parts: the loss "
    "before training minus the loss right before a task is learned, of tasks whose permutation was "
    "met before and of those whose is new (below zero: worse than the untrained model). Rise: what "
    "one task adds to the loss of a learned one, where it shares its permutation and where not."
)
COSTS = (
    "FLOPs: of a forward pass, two per weight that a token is multiplied with and those of "
    "attention; what memories do to write themselves is not counted, CPU seconds hold it. CPU "
    "seconds: of the process until R is measured, start and checkpoints included; the machine had "
    "two cores that others used, so that they are good to a tenth or so."
)
EVALUATED = (
    "R reads every model with the k that it was configured with (2), whatever its controller did "
    "last: an evaluator has no controller, and models are then compared at equal active FLOPs. "
    "Validation inside a run asks the controller what it would do without exploring (`frozen`), "
    "and leaves it as it is. Here both are beside each other on the same 16 validation windows of "
    "every task that was learned so far, after every task (anytime: the mean over these moments), "
    "with the most likely knobs of the learned policy there."
)
QUESTIONS = (
    ("dense_replay", "dense"),
    ("sparse_replay", "sparse"),
    ("sparse", "dense"),
    ("sparse_replay", "dense_replay"),
    ("sparse", "dense_flops"),
    ("sparse_replay", "dense_flops_replay"),
    ("sparse_random", "sparse_replay"),
    ("sparse_pi", "sparse_replay"),
    ("sparse_gru", "sparse_replay"),
    ("sparse_gru", "sparse_random"),
    ("hope_attention", "dense"),
    ("hope_selfmod", "dense"),
    ("hope_attention", "hope_attention, frozen"),
    ("hope_selfmod", "hope_selfmod, frozen"),
    ("hope_attention", "sparse_replay"),
    ("hope_selfmod", "sparse_replay"),
)
"""What is put in words."""
COUNTS = {2: "two", 3: "three", 4: "four", 5: "five"}


def sentence(rows: Mapping[str, Row], one: str, other: str) -> str | None:
    """What the intervals say about two rows; None where one of them is not there."""
    if one not in rows or other not in rows:
        return None
    said, open_ = [], []
    count = 0
    for measure, name in COMPARED.items():
        gap = difference(rows[one].values(measure), rows[other].values(measure))
        if gap is None:
            continue
        count = gap.n
        if clear(gap):
            said.append(
                f"{name} {verdict(gap)} by {Interval(abs(gap.mean), 0, gap.half, 3).text()}"
            )
        else:
            open_.append(f"{name} ({gap.text()})")
    if not count:
        return None
    many = COUNTS.get(count, str(count))
    words = f"- {name_of(one)} against {name_of(other)}: "
    if said:
        words += "; ".join(said) + "."
    if open_:
        words += f" No difference that {many} seeds can show in {', '.join(open_)}."
    return words.replace(":  No", ": no")


def within(row: Row) -> str:
    """Whether a task with the same permutation does more than another one, of one row."""
    gaps = [
        difference(row.values(one), row.values(other))
        for one, other in (("hit_same", "hit_other"), ("transfer_known", "transfer_new"))
    ]
    if None in gaps:
        return ""
    hit, gain = (gap for gap in gaps if gap is not None)
    many = COUNTS.get(hit.n, str(hit.n))
    unclear = f"no difference that {many} seeds can show"
    raised = f"{'less' if hit.mean < 0 else 'more'} than another task" if clear(hit) else unclear
    known = f"{'worse' if gain.mean < 0 else 'better'} than a new one" if clear(gain) else unclear
    return (
        f"a task with the same permutation raises an earlier loss: {raised} ({hit.text()}); a "
        f"known permutation is read in advance: {known} ({gain.text()})."
    )


def best(rows: Mapping[str, Row]) -> list[str]:
    """Rows by their means, as a list; an order of means is no claim."""
    lines = []
    for measure in ("average_loss", "forgetting", "plasticity_loss"):
        means = {
            row.name: interval(list(values.values()))
            for row in rows.values()
            if row.key != "dense_joint" and (values := row.values(measure))
        }
        order = sorted(means, key=lambda name: means[name].mean)
        told = "; ".join(f"{name} {means[name].text(2)}" for name in order)
        lines.append(f"- {COMPARED[measure]}, lowest mean first: {told}.")
    return lines


def introduction(rows: Mapping[str, Row]) -> str:
    """What was trained and how it was measured, from the configuration of a run."""
    run = next(iter(next(iter(rows.values())).runs.values()))
    stream, train = run.config.stream, run.config.train
    domains = ", ".join(stream.domains)
    tokens = stream.steps * stream.batch_size * stream.seq_len
    return (
        f"Made by `{study.call('tgsmn')}` from `nl sweep configs/sweep/tgsmn_study.yaml` and "
        f"`tgsmn_alone.yaml`: {stream.tasks} tasks, {domains} in turn ({stream.path}: prose and "
        "code of Python's standard library, words of a Markov chain), each read through one of "
        f"{stream.repeat} permutations of the vocabulary, so that task i + {stream.repeat} speaks "
        f"the language of task i about something else. {stream.steps} steps of {stream.batch_size} "
        f"x {stream.seq_len} tokens per task, {tokens * stream.tasks:,} tokens in all, the same "
        f"for every row ({train.steps} steps, AdamW, constant rate {run.config.optim.lr:g} after "
        f"{run.config.schedule.warmup} steps); two layers of width {run.config.model.dim}. Rows "
        "of one seed have the same permutations, windows and order; another seed has others. R: "
        f"nats per token on {run.config.evals['tasks'].windows} held-out windows of every task, "
        "State fresh in each, before training and after each task. Mean and half a 95 % interval "
        "over seeds (Student); words in brackets say which direction is good."
    )


def setting() -> list[str]:
    """What the rows are."""
    return [
        "- dense: a Transformer with feed-forward layers as wide as gives it the parameters of the "
        "sparse one; equal FLOPs: as wide as gives it the FLOPs per token of k = 2.",
        "- sparse: 64 experts of rank 16 per layer, k = 2, kept in use by a bias.",
        "- replay: a quarter of every batch is drawn from 256 stored rows of earlier tasks, "
        "balanced over tasks; the batch does not grow.",
        "- random, GRU: turn k (1 to 4) and the replayed share (0 to 0.5) every 5 steps; the GRU "
        "learns online, 19 updates of 4 turns at a rate of 0.01. PI: turns the share so that the "
        "loss on earlier tasks is 5.6, about what fixed replay holds. These numbers were chosen "
        "on a seed that is not in the tables.",
        "- hope: levels of a continuum memory in the place of the feed-forward layers, equal "
        "parameters, written within a window (periods 16 to 128; a window has 64 tokens). "
        "frozen: the same models, memories not written while R is measured.",
        "- joint: all tasks at once, row by row. alone (in `learned minus alone`): a fresh dense "
        "model on that task only.",
        "",
    ]
