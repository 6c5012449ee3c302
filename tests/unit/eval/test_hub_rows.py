"""Every hub task runs from local files in the hub's columns, with the harness's own prompts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nl.config import ConfigError
from nl.eval.context import EvalContext
from nl.eval.hub_tasks import HUB_TASKS
from nl.eval.zeroshot import ZeroshotConfig

LETTERS = ["A", "B", "C", "D", "E"]
FIVE = {"label": LETTERS, "text": ["bank", "shop", "farm", "lake", "road"]}
FOUR = {"text": ["ice", "air", "sand", "oil"], "label": ["1", "2", "3", "4"]}
ROWS: dict[str, dict[str, Any]] = {
    "piqa": {"goal": "Dry it.", "sol1": "Use a towel.", "sol2": "Use water.", "label": 0},
    "hellaswag": {
        "ind": 4,
        "activity_label": "Baking",
        "ctx_a": "A man mixes dough.",
        "ctx_b": "he",
        "ctx": "A man mixes dough. he",
        "endings": ["eats [substeps] it.", "bakes  it.", "sings.", "leaves."],
        "source_id": "x",
        "split": "val",
        "split_type": "indomain",
        "label": "1",
    },
    "winogrande": {
        "sentence": "Ann asked Eve as _ knew.",
        "option1": "Ann",
        "option2": "Eve",
        "answer": "2",
    },
    "arc_easy": {"id": "q1", "question": "What melts?", "choices": FOUR, "answerKey": "1"},
    "arc_challenge": {
        "id": "q2",
        "question": "What flows?",
        "choices": {"text": ["rock", "tar"], "label": ["A", "B"]},
        "answerKey": "B",
    },
    "boolq": {"question": "is ice cold", "passage": "Ice is cold.", "idx": 0, "label": 1},
    "siqa": {
        "context": "Sam fell.",
        "question": "How is Sam?",
        "answerA": "happy",
        "answerB": "hurt",
        "answerC": "rich",
        "label": "2",
    },
    "commonsenseqa": {
        "id": "c",
        "question": "Where is money kept? ",
        "question_concept": "money",
        "choices": FIVE,
        "answerKey": "A",
    },
    "openbookqa": {
        "id": "o",
        "question_stem": "A plant needs",
        "choices": {"text": ["sun", "snow", "sand", "sound"], "label": LETTERS[:4]},
        "answerKey": "A",
    },
    "lambada": {"text": "the dog came home to its dog"},
    "wikitext": {"page": " = Title = \n A page , with words . \n"},
}
ASKED: dict[str, list[tuple[str, str]]] = {
    "piqa": [("Question: Dry it.\nAnswer:", " Use a towel."), ("", " Use water.")],
    "hellaswag": [("Baking: A man mixes dough. He", " eats it."), ("", " bakes it.")],
    "winogrande": [("Ann asked Eve as Ann", " knew."), ("Ann asked Eve as Eve", " knew.")],
    "arc_easy": [("Question: What melts?\nAnswer:", " ice"), ("", " air")],
    "arc_challenge": [("Question: What flows?\nAnswer:", " rock"), ("", " tar")],
    "boolq": [("Ice is cold.\nQuestion: is ice cold?\nAnswer:", " no"), ("", " yes")],
    "siqa": [("Q: Sam fell. How is Sam?\nA:", " happy"), ("", " hurt")],
    "commonsenseqa": [
        (
            "Question: Where is money kept?\nA. bank\nB. shop\nC. farm\nD. lake\nE. road\nAnswer:",
            " A",
        ),
        ("", " B"),
    ],
    "openbookqa": [("A plant needs", " sun"), ("", " snow")],
    "lambada": [("the dog came home to its", " dog")],
}
CHANCE = {"piqa": 2, "hellaswag": 4, "winogrande": 2, "arc_easy": 4, "arc_challenge": 2}
CHANCE |= {"boolq": 2, "siqa": 3, "commonsenseqa": 5, "openbookqa": 4}
NORMED = ("piqa", "hellaswag", "arc_easy", "arc_challenge", "openbookqa")


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    for name, row in ROWS.items():
        file = tmp_path / "mirror" / name / f"{HUB_TASKS[name].split}.jsonl"
        file.parent.mkdir(parents=True)
        file.write_text((json.dumps(row) + "\n") * 2)
    return tmp_path / "mirror"


def test_all_tasks(fakes: ModuleType, context: EvalContext, mirror: Path) -> None:
    assert ROWS.keys() == HUB_TASKS.keys()
    config = ZeroshotConfig(
        tasks=("all",), samples=0, memorize=("off", "oracle"), data_dir=str(mirror)
    )
    context = replace(context, segment=512)
    rows = config.build()(fakes.InductionModel(), context)
    by_key = {(row.task, row.metric, row.memorize): row for row in rows}
    for name, task in HUB_TASKS.items():
        lines = (context.output / f"samples_{task.name}_off.jsonl").read_text().splitlines()
        sample = json.loads(lines[0])
        assert len(lines) == 2
        for place, (text, answer) in enumerate(ASKED.get(name, [])):
            asked = sample["arguments"][place]
            assert asked == [text or ASKED[name][0][0], answer]
        facts = context.record.details["tasks"][task.name]
        assert facts["file"] == str((mirror / name / f"{task.split}.jsonl").resolve())
        assert len(facts["file_sha256"]) == len(facts["prompts_sha256"]) == 64
        assert facts["num_fewshot"] == 0
        if name in CHANCE:
            assert by_key[task.name, "acc", "off"].chance == pytest.approx(1 / CHANCE[name])
            assert by_key[task.name, "acc", "oracle"].value == 1, name
            assert ((task.name, "acc_norm", "off") in by_key) == (name in NORMED)
            assert by_key[task.name, "acc", "oracle"].stderr == 0
    assert by_key["lambada_openai", "acc", "oracle"].value == 1
    assert context.record.details["tasks"]["boolq"]["version"] == 2.0
    for metric in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        row = by_key["wikitext", metric, "off"]
        assert row.n == 2
        assert row.stderr == pytest.approx(0, abs=1e-6)  # one page, twice
        assert (row.chance or 0) > by_key["wikitext", metric, "oracle"].value
    page = ROWS["wikitext"]["page"]
    bits = by_key["wikitext", "bits_per_byte", "off"].chance
    text = json.loads((context.output / "samples_wikitext_off.jsonl").read_text().splitlines()[0])
    assert bits == pytest.approx(7 * len(text["arguments"][0][0]) / len(page))


def test_files_of_ones_own(fakes: ModuleType, context: EvalContext, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"q": "one", "a": "two"}\n')
    task = tmp_path / "mine.yaml"
    task.write_text(
        "task: mine\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}\n"
        "test_split: test\noutput_type: loglikelihood\ndoc_to_text: q\n"
        'doc_to_target: " {{a}}"\nmetric_list: [{metric: acc}]\n'
    )
    config = ZeroshotConfig(tasks=(str(task),), memorize=("off",), data_dir=None)
    rows = config.build()(fakes.UniformModel(), context)
    assert (rows[0].task, rows[0].metric, rows[0].n) == ("mine", "acc", 1)
    with pytest.raises(ConfigError, match=r"gone\.yaml: no such file"):
        ZeroshotConfig(tasks=("gone.yaml",)).build()(fakes.UniformModel(), context)
