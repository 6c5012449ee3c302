"""Runs side by side: values, paired differences, one page, one markdown file. Floor 1."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from nl.report.frames import Row, is_number
from nl.report.numbers import DASH, figure, with_error
from nl.report.page import Placed, data_uri, load_template, replace
from nl.report.paired import Difference, direction, paired, unpaired
from nl.report.sides import Key, Side, samples_of
from nl.report.tables import Cell, Table, sort_key, table_csv

EXPLAINED = (
    "Values stand with one standard error. A difference is that of a model to the first one, "
    "positive where its value is larger, with its 95 % interval. Paired t: "
    "Student's interval over samples that both have answered, so that what is hard for both "
    "cancels; for sums over sums (nats per token) on what each document adds to the difference. "
    "Unpaired normal: from the two standard errors alone, where no samples are kept. Intervals are "
    "of one row each: among twenty rows without any difference one is expected to look clear."
)


def differences(sides: list[Side]) -> dict[Key, list[Difference | None]]:
    """By key, for every side but the first, how it differs from the first; None: not both."""
    first = sides[0]
    found: dict[Key, list[Difference | None]] = {}
    for key in ordered(sides):
        line: list[Difference | None] = []
        for side in sides[1:]:
            if key not in first.rows or key not in side.rows:
                line.append(None)
                continue
            mine, theirs = (samples_of(s, key) for s in (first, side))
            same = paired(mine, theirs, key[2])
            line.append(same or unpaired(first.rows[key], side.rows[key]))
        found[key] = line
    return found


def ordered(sides: list[Side]) -> list[Key]:
    """Every key of any side, in order of appearance."""
    return list(dict.fromkeys(key for side in sides for key in side.rows))


def verdict(difference: Difference | None, metric: str) -> str:
    """``better``, ``worse``, ``no clear difference``, or nothing where no direction is known."""
    sign = direction(metric)
    if difference is None or difference.half is None or not sign:
        return ""
    if difference.half == 0 and difference.value == 0:
        return "no sample differs"
    if not difference.clear:
        return "no clear difference"
    return "better" if sign * difference.value > 0 else "worse"


def tables(sides: list[Side]) -> list[Table]:
    """One table per suite; what memories wrote stands in tables of its own."""
    found = differences(sides)
    groups: dict[str, list[Key]] = {}
    for key in found:
        memory = " (what memories wrote)" if key[2].startswith("memory/") else ""
        groups.setdefault(key[0] + memory, []).append(key)
    return [one_table(title, keys, sides, found) for title, keys in groups.items()]


def one_table(
    title: str, keys: list[Key], sides: list[Side], found: dict[Key, list[Difference | None]]
) -> Table:
    """Values of every side, then per further side difference, verdict and method."""
    names = [side.name for side in sides]
    head = ["task", "metric", "memory", "chance", "n", *names]
    for name in names[1:]:
        head += ["difference" if len(names) == 2 else f"difference of {name}", "verdict"]
        head.append("method")
    columns = ["task", "metric", "memorize", "chance", "side", "value", "stderr", "n"]
    columns += ["difference", "low", "high", "pairs", "better", "worse", "method"]
    cells, numbers = [], [columns]
    for key in keys:
        rows = [side.rows.get(key, {}) for side in sides]
        cells.append(line_cells(key, rows, found[key]))
        numbers += csv_lines(key, names, rows, found[key])
    stem = "compare_" + "".join(c if c.isalnum() else "_" for c in title)
    return Table(stem, title, head, cells, numbers)


def line_cells(key: Key, rows: list[Row], found: list[Difference | None]) -> list[Cell]:
    """One line of a table."""
    some: Row = next((row for row in rows if row), {})
    sizes = sorted({int(row["n"]) for row in rows if is_number(row.get("n"))})
    chance = some.get("chance")
    line = [Cell(text, text) for text in key[1:]]
    line.append(Cell(figure(chance), sort_key(chance), numeric=True))
    line.append(Cell(" / ".join(map(str, sizes)) or DASH, sizes[0] if sizes else "", numeric=True))
    for row in rows:
        shown = with_error(row.get("value"), row.get("stderr"))
        line.append(Cell(shown, sort_key(row.get("value")), str(row.get("note", "")), numeric=True))
    for difference in found:
        line.append(difference_cell(difference))
        line += [Cell(verdict(difference, key[2])), Cell(method(difference))]
    return line


def method(difference: Difference | None) -> str:
    """How an interval was made, and on how many samples."""
    if difference is None:
        return ""
    return difference.method + (f", {difference.n} samples" if difference.n else "")


def difference_cell(difference: Difference | None) -> Cell:
    """A difference with its interval; the pointer shows how it was made."""
    if difference is None:
        return Cell(DASH, numeric=True)
    value, half = difference.value, difference.half
    shown = figure(value, 3)
    if half:
        ends = (figure(end, 3) for end in (value - half, value + half))
        shown += f" [{', '.join(ends)}]"
    title = method(difference)
    if difference.better is not None:
        title += f", better on {difference.better}, worse on {difference.worse}"
    return Cell(("+" if value > 0 else "") + shown, value, title, numeric=True)


def csv_lines(
    key: Key, names: list[str], rows: list[Row], found: list[Difference | None]
) -> list[list[Any]]:
    """One line per side; the first has no difference."""
    out = []
    for name, row, difference in zip(names, rows, [None, *found], strict=True):
        line = [*key[1:], row.get("chance"), name, row.get("value"), row.get("stderr")]
        line.append(row.get("n"))
        if difference is not None:
            half = difference.half
            value = difference.value
            ends = [value - half, value + half] if half is not None else [None, None]
            counts = [difference.n, difference.better, difference.worse, difference.method]
            line += [value, *ends, *counts]
        out.append([*line, *[None] * (15 - len(line))])
    return out


def warnings(sides: list[Side]) -> list[str]:
    """What makes numbers of the sides incomparable, as far as their files say."""
    found = []
    for suite in dict.fromkeys(suite for side in sides for suite in side.facts):
        facts = [side.facts[suite] for side in sides if suite in side.facts]
        for name, words in (
            ("tokenizer", "tokenizers differ: numbers per token are not comparable"),
            ("seed", "seeds of what is sampled differ: the samples are not the same"),
            ("data", "data directories differ"),
        ):
            values = {str(fact.get(name)) for fact in facts if fact.get(name) is not None}
            if len(values) > 1:
                found.append(f"{suite}: {words}.")
    return found


def write_page(sides: list[Side], path: Path) -> None:
    """One self-contained HTML page.

    Raises:
        ConfigError: the viz extra is missing.
    """
    placed = []
    for table in tables(sides):
        text = table_csv(table)
        placed.append(Placed(table, f"{table.name}.csv", data_uri(text)))
    page = load_template("tables.html.j2").render(
        title="Runs side by side",
        where=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        facts=[(side.name, source(side)) for side in sides],
        warnings=warnings(sides),
        notes=[EXPLAINED],
        sections=[("Differences", placed)],
    )
    replace(path, page)


def source(side: Side) -> str:
    """Where a side's numbers come from."""
    known = {str(fact.get("step")) for fact in side.facts.values()} - {"None"}
    step = f", step {', '.join(sorted(known))}" if known else ""
    return f"{side.source}{step}"


def markdown(sides: list[Side]) -> str:
    """The same tables as markdown."""
    lines = ["# Runs side by side", ""]
    lines += [f"- {side.name}: `{source(side)}`" for side in sides]
    lines += [f"- **{text}**" for text in warnings(sides)]
    lines += ["", EXPLAINED]
    for table in tables(sides):
        lines += ["", f"## {table.title}", "", *as_markdown(table)]
    return "\n".join(lines) + "\n"


def as_markdown(table: Table) -> list[str]:
    """The lines of one table."""
    ruler = ["---:" if cell.numeric else "---" for cell in table.rows[0]]
    rows = [[cell.text for cell in row] for row in table.rows]
    return ["| " + " | ".join(row) + " |" for row in (table.head, ruler, *rows)]
