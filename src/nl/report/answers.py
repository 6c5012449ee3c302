"""What a probe's evaluator kept of single rows: where it was asked, said and should have said.

Floor 1. Recognised by what the file holds, as everything on the page of a run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from nl.report.artifacts import documents
from nl.report.frames import Row, RunFrame


def answers(frame: RunFrame) -> Row | None:
    """Kept rows of a probe, those with the most confident errors first; None where there are none.

    Equal rows are one, with ``times``. A row is {right, index, times, wrong, asked, sure, steps},
    a step {token, answer}, where ``answer`` is None or {right, said, is, p_said, p_is}: at this
    token ``said`` was the most likely next answer, with probability ``p_said``.
    """
    for _, told in documents(frame, "task", "wrong", "errors", "right"):
        kept = [*told["errors"], *told["right"]]
        if not kept or not all({"inputs", "places", "guesses"} <= one.keys() for one in kept):
            continue
        rows = distinct(kept)
        shown = sum(row["wrong"] > 0 for row in rows)
        note = (
            f"{told['task']}: {told['wrong']} rows with an error, {shown} different ones kept, the "
            "most confident errors first. A marked token is one behind which an answer was asked; "
            "the deeper its shade, the likelier the right answer was. Tokens are their ids."
        )
        return {"rows": rows, "note": note, "wrong_first": shown > 0}
    return None


def distinct(kept: Iterable[Row]) -> list[Row]:
    """Rows as the page has them, equal ones once."""
    found: dict[str, Row] = {}
    for one in kept:
        name = json.dumps([one["inputs"], one["places"], one["targets"], one["guesses"]])
        if name in found:
            found[name]["times"] += 1
        else:
            found[name] = strip(one)
    return list(found.values())


def strip(one: Row) -> Row:
    """A row, token by token."""
    asked: dict[int, dict[str, Any]] = {}
    for place, wanted, said, p_said, p_is in zip(
        one["places"],
        one["targets"],
        one["guesses"],
        one["probability"],
        one["right"],
        strict=True,
    ):
        asked[int(place)] = {
            "right": said == wanted,
            "said": said,
            "is": wanted,
            "p_said": float(p_said),
            "p_is": float(p_is),
        }
    wrong = [answer for answer in asked.values() if not answer["right"]]
    return {
        "index": one["index"],
        "times": 1,
        "right": not wrong,
        "wrong": len(wrong),
        "asked": len(asked),
        "sure": max((answer["p_said"] for answer in wrong), default=0.0),
        "steps": [
            {"token": token, "answer": asked.get(place)}
            for place, token in enumerate(one["inputs"])
        ],
    }
