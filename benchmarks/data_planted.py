"""Planted truth: 1,000 documents whose fate is known go through the chain; precision, recall.

Usage: python benchmarks/data_planted.py --output artifacts/data/planted.json

English documents are taken from this Python's own documentation; they are kept apart (no two share
a third of their shingles), so that what is not planted is no duplicate. Planted are exact
duplicates, near-duplicates (Jaccard similarity of 5-word shingles 0.80 to 0.95), documents in
other languages, short ones, ones with broken UTF-8, ones with a huge line.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_chain import ROOT, chain, command_line, machine

from nl.data.documents import UNDIVIDED, Document, read_corpus, read_jsonl
from nl.data.prep.command import run
from nl.data.prep.dedup_leak import HeldOut, leak
from nl.data.prep.dedup_signatures import jaccard, shingles
from nl.data.prep.engine import Executor
from nl.data.prep.filters_checks import FilterOptions
from nl.data.prep.stdlib import stdlib_documents

PLANTED = {"exact": 200, "near": 100, "language": 100, "short": 50, "broken": 20, "huge": 10}
TOTAL = 1000
APART = 1 / 3
NEAR = (0.80, 0.95)
REASONS = {
    "language": ("other_language", "language_unsure"),
    "short": ("too_short",),
    "broken": ("broken_utf8",),
    "huge": ("long_line",),
    "exact": ("exact_duplicate",),
    "near": ("near_duplicate",),
}
OTHER = {
    "german": (
        "Am Morgen ging der alte Lehrer durch den stillen Garten zur Schule",
        "Die Kinder warteten vor dem Tor und sprachen leise miteinander",
        "Niemand wusste genau, warum das Fenster in der Nacht offen stand",
        "Der Wagen fuhr langsam aus dem Dorf und verschwand hinter dem Wald",
        "Meine Mutter backt am Sonntag einen Kuchen mit Kirschen und Nelken",
        "Der Rat der Stadt hat beschlossen, das alte Rathaus zu erneuern",
    ),
    "french": (
        "Le vieux marin regardait la mer pendant que les enfants jouaient sur le sable",
        "Nous avons mis le pain sur la table et ouvert une bouteille de vin rouge",
        "La petite ville dort encore quand le boulanger ouvre sa boutique",
        "Il ne savait pas que son voisin avait vendu la maison depuis longtemps",
        "Les livres de la biblioteque sont rendus chaque mois par les lecteurs",
        "Elle chante dans la cuisine avec une voix douce et un peu triste",
    ),
    "spanish": (
        "El viejo pescador miraba el mar mientras los muchachos jugaban en la arena",
        "Cada domingo mi abuela prepara una comida grande para toda la familia",
        "La ciudad estaba tranquila cuando el tren de la noche entro en la plaza",
        "No quiero que los vecinos sepan lo que encontramos en el jardin",
        "Los estudiantes caminan hacia la escuela con sus libros y sus cuadernos",
        "Hace muchos siglos vivia en este pueblo una mujer que hablaba con las aves",
    ),
    "dutch": (
        "De oude man liep langzaam langs het water naar de kleine haven",
        "Wij hebben gisteren de hele dag in de tuin van onze buren gewerkt",
        "Het huis aan het einde van de straat staat al jaren leeg",
        "Niemand wist waarom de klok van de kerk die nacht bleef luiden",
        "De kinderen kregen brood met kaas en een glas verse melk",
        "Zij schrijft elke week een lange brief aan haar zus in het noorden",
    ),
    "italian": (
        "Il vecchio pescatore guardava il mare mentre i ragazzi giocavano sulla spiaggia",
        "Ogni domenica mia nonna prepara il pranzo per tutta la famiglia",
        "La strada che porta al paese passa sotto gli alberi del bosco",
        "Non sapevamo che il treno della notte sarebbe arrivato in ritardo",
        "Gli studenti leggono il giornale nella piazza davanti alla chiesa",
        "Questa casa appartiene a una donna che parla con gli uccelli",
    ),
}


@dataclass(frozen=True)
class Item:
    """A line of the raw file and what it is."""

    kind: str
    data: bytes
    text: str = ""
    original: int = -1
    """Number of the document it repeats."""
    similarity: float = 0.0


def line(text: str) -> bytes:
    return json.dumps({"text": text}, ensure_ascii=False).encode()


def english() -> Iterator[str]:
    """Texts of 600 to 6,000 characters from this Python, cut at empty lines."""
    for document in stdlib_documents("prose"):
        piece = ""
        for paragraph in document.text.split("\n\n"):
            if len(piece) + len(paragraph) > 3000 and len(piece) >= 600:
                yield piece
                piece = ""
            piece += paragraph + "\n\n"
        if 600 <= len(piece) <= 6000:
            yield piece


def distinct(count: int, draw: random.Random) -> list[str]:
    """English texts no two of which share ``APART`` of their shingles, by an exact search."""
    texts = [t for t in english() if len(shingles(t, 5)) >= 60]
    draw.shuffle(texts)
    documents = [Document(t, str(n)) for n, t in enumerate(texts)]
    kept: list[Document] = []
    for start in range(0, len(documents), 100):
        for document in documents[start : start + 100]:
            pool = HeldOut([document])
            for other in kept:
                pool.compare(other)
                if pool.best[0] >= APART:
                    break
            else:
                kept.append(document)
                if len(kept) == count:
                    return [d.text for d in kept]
    raise SystemExit(f"this Python has only {len(kept)} distinct texts, {count} are needed")


def near(text: str, draw: random.Random, scattered: bool) -> tuple[str, float]:
    """A text whose similarity to ``text`` lies in ``NEAR``; a passage or single words changed."""
    own = shingles(text, 5)
    words = text.split(" ")
    for share in [draw.uniform(0.01, 0.2) / (5 if scattered else 1) for _ in range(400)]:
        new = list(words)
        count = max(1, round(share * len(words)))
        start = draw.randrange(max(1, len(words) - count))
        places = draw.sample(range(len(words)), count) if scattered else range(start, start + count)
        for place in places:
            new[place] = f"other{draw.randrange(10**6)}"
        similarity = jaccard(own, shingles(" ".join(new), 5))
        if NEAR[0] <= similarity <= NEAR[1]:
            return " ".join(new), similarity
    raise SystemExit("no variant of the wanted similarity was found")


def foreign(language: str, number: int, draw: random.Random) -> str:
    clauses = [f"{draw.choice(OTHER[language])}." for _ in range(12)]
    return "\n".join([*clauses, f"({language[:2]} {number})"]) + "\n"


def plant(draw: random.Random) -> list[Item]:
    """The raw file, in an order in which originals may follow their repetitions."""
    special = sum(PLANTED.values())
    texts = distinct(TOTAL - special + PLANTED["broken"] + PLANTED["huge"], draw)
    spare = [texts.pop() for _ in range(PLANTED["broken"] + PLANTED["huge"])]
    items = [Item("clean", line(t), t, n) for n, t in enumerate(texts)]
    for n in range(PLANTED["exact"]):
        items.append(Item("exact", line(texts[n]), texts[n], n))
    for n in range(PLANTED["near"]):
        original = PLANTED["exact"] + n
        text, similarity = near(texts[original], draw, scattered=n % 2 == 0)
        items.append(Item("near", line(text), text, original, similarity))
    for n in range(PLANTED["language"]):
        items.append(Item("language", line(foreign([*OTHER][n % len(OTHER)], n, draw))))
    for n in range(PLANTED["short"]):
        items.append(Item("short", line(f"A note, number {n}, that says almost nothing.\n")))
    for _ in range(PLANTED["broken"]):
        data = bytearray(line(spare.pop()))
        for _ in range(draw.randrange(1, 6)):
            data[draw.randrange(40, len(data) - 40)] = draw.choice(b"\xff\xfe\xc3\x80\xf5")
        items.append(Item("broken", bytes(data)))
    for _ in range(PLANTED["huge"]):
        row = "".join(draw.choices("0123456789abcdef", k=draw.randrange(200_000, 3_000_000)))
        items.append(Item("huge", line(spare.pop() + row + "\n")))
    draw.shuffle(items)
    return items


def truth(items: list[Item]) -> dict[int, str]:
    """What should become of each line: of an original and its repetition the later goes."""
    fate = {n: item.kind for n, item in enumerate(items)}
    first: dict[int, int] = {}
    for n, item in enumerate(items):
        if item.original in first:
            kind = item.kind if item.kind != "clean" else items[first[item.original]].kind
            fate[first[item.original]], fate[n] = "clean", kind
        elif item.original >= 0:
            first[item.original] = n
    return fate


def sources(corpus: Path) -> set[int]:
    """Lines of the raw file whose documents a corpus still has."""
    files = [f for ds in read_corpus(corpus).splits.values() for fs in ds.values() for f in fs]
    return {number(d.source) for f in files for d in read_jsonl(corpus / f.file)}


def number(source: str) -> int:
    """Lines are counted from 0 here and from 1 in the names of documents."""
    return int(source.rpartition(":")[2]) - 1


def dropped(work: Path, everything: set[int]) -> dict[int, str]:
    """Reason by line, from what the stages wrote beside their output."""
    ingested = sources(work / "1")
    reasons = dict.fromkeys(everything - ingested, "broken_utf8")
    for stage in ("2", "3"):
        for path in (work / stage / "dropped" / UNDIVIDED).rglob("*.jsonl"):
            for text in path.read_text(encoding="utf-8").splitlines():
                row = json.loads(text)
                reasons[number(row["source"])] = row["reason"]
    return reasons


def score(fate: Mapping[int, str], reasons: Mapping[int, str]) -> list[dict[str, Any]]:
    """Precision and recall of each step, and what it took wrongly or missed."""
    rows = []
    for kind, names in REASONS.items():
        planted = {n for n, k in fate.items() if k == kind}
        taken = {n for n, r in reasons.items() if r in names}
        right = planted & taken
        rows.append(
            {
                "step": kind,
                "reasons": list(names),
                "planted": len(planted),
                "dropped": len(taken),
                "right": len(right),
                "precision": round(len(right) / len(taken), 4) if taken else None,
                "recall": round(len(right) / len(planted), 4) if planted else None,
                "missed": dict(Counter(reasons.get(n, "kept") for n in planted - taken)),
                "wrong": dict(Counter(fate[n] for n in taken - planted)),
            }
        )
    return rows


def by_similarity(items: list[Item], reasons: Mapping[int, str]) -> list[dict[str, Any]]:
    """Recall of near-duplicates by similarity, beside what the bands promise."""
    near_items = [(n, i) for n, i in enumerate(items) if i.kind == "near"]
    first = {i.original: n for n, i in enumerate(items) if i.kind == "clean"}
    rows = []
    for low, high in ((0.80, 0.85), (0.85, 0.90), (0.90, 0.951)):
        some = [(n, i) for n, i in near_items if low <= i.similarity < high]
        gone = [reasons.get(max(n, first[i.original])) == "near_duplicate" for n, i in some]
        promised = [1 - (1 - i.similarity**8) ** 14 for _, i in some]
        count = max(1, len(some))
        rows.append(
            {
                "from": low,
                "to": min(high, NEAR[1]),
                "pairs": len(some),
                "found": sum(gone),
                "recall": round(sum(gone) / count, 4),
                "expected": round(sum(promised) / count, 4),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "artifacts/data/planted.json")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, nargs="*", default=[], help="also measure its leak")
    args = parser.parse_args()
    items = plant(random.Random(args.seed))
    with tempfile.TemporaryDirectory() as folder:
        raw, work = Path(folder) / "raw.jsonl", Path(folder) / "work"
        raw.write_bytes(b"".join(item.data + b"\n" for item in items))
        logs = chain(raw, work, Executor(), FilterOptions(keep_dropped=True), 0.2, None)
        reasons, fate = dropped(work, set(range(len(items)))), truth(items)
        leaks = [{"corpus": "planted"} | leak(work / "4", split) for split in ("val", "test")]
    for corpus in args.corpus:
        leaks += [{"corpus": str(corpus)} | leak(corpus, split) for split in ("val", "test")]
    stages = [
        {"stage": name, "counts": log["counts"], "reasons": log["reasons"]}
        for name, log in logs.items()
    ]
    clean = {n for n, kind in fate.items() if kind == "clean"}
    lost = Counter(reasons[n] for n in clean if n in reasons)
    end = stages[-1]["counts"]["documents_out"]
    result = {
        "command": command_line(),
        "machine": machine(),
        "documents": len(items),
        "planted": PLANTED,
        "stages": stages,
        "rows": score(fate, reasons),
        "near_by_similarity": by_similarity(items, reasons),
        "clean": {"planted": len(clean), "lost": dict(lost)},
        "adds_up": len(items) == end + sum(sum(s["reasons"].values()) for s in stages),
        "leaks": leaks,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    for row in result["rows"]:
        print({k: row[k] for k in ("step", "planted", "dropped", "precision", "recall", "wrong")})
    print("clean", result["clean"], "adds up:", result["adds_up"])


if __name__ == "__main__":
    sys.exit(run(main))
