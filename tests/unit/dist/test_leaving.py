"""A rank ends with its exit code and its last words, also beside threads that do not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RANK = """
import atexit, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from nl.dist import leaving as module

module.met = lambda: {met}
sys.orig_argv = [*sys.orig_argv, {started}]
atexit.register(lambda: print("registered"))
late = lambda: (time.sleep(0.3), print("thread"))
threading.Thread(target=late).start()
threading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()
pool = ThreadPoolExecutor(1)
pool.submit(int)  # its thread then waits for work


class Last:
    def __del__(self):
        print("taken down")


last = Last()
with module.leaving(Path('/there/train.py')):
    sys.stdout.write("work, ")
    {body}
print("after")
"""


@pytest.mark.parametrize(
    ("met", "started", "body", "code", "words"),
    [
        ("object()", "''", "pass", 0, "work, thread\nregistered\n"),
        ("object()", "''", "raise SystemExit(143)", 143, "work, thread\nregistered\n"),
        ("object()", "''", "raise SystemExit('why')", 1, "work, thread\nregistered\ntaken down\n"),
        ("object()", "''", "raise ValueError('why')", 1, "work, thread\nregistered\ntaken down\n"),
        ("None", "'/there/../there/train.py'", "pass", 0, "work, thread\nregistered\n"),
        ("None", "'/there/train.py'", "raise SystemExit(2)", 2, "work, thread\nregistered\n"),
        ("None", "'/there/train.py'", "raise KeyboardInterrupt", 130, "work, thread\nregistered\n"),
        ("None", "'/there/other.py'", "pass", 0, "work, after\nthread\nregistered\ntaken down\n"),
    ],
)
def test_codes_and_words(met: str, started: str, body: str, code: int, words: str) -> None:
    text = RANK.format(met=met, started=started, body=body)
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == code
    assert done.stdout == words
    assert ("why" in done.stderr) == ("why" in body)


def test_without_streams() -> None:
    text = (
        "import os, sys; from nl.run.ending import leave, open_streams; open_streams();"
        "print('words'); print(os.open('/dev/null', 0) > 2, file=sys.stderr);"
        "leave(len(sys.stdin.read()))"
    )
    ends = {}
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        done = subprocess.run(
            ["bash", "-c", f'"$0" -c "$1" {closed}', sys.executable, text],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        ends[closed] = (done.returncode, done.stdout, done.stderr)
    assert ends == {
        "<&-": (0, "words\n", "True\n"),
        ">&-": (0, "", "True\n"),
        "2>&-": (0, "words\n", ""),
        "<&- >&- 2>&-": (0, "", ""),
    }


def test_words_that_cannot_be_written() -> None:
    text = "from nl.run.ending import leave; print('words'); leave(0)"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", text],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, "PYTHONUNBUFFERED": ""},
        )
    assert done.returncode == 120
    assert "No space left" in done.stderr
