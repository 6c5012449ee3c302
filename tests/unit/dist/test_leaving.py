"""A rank ends with its exit code and its last words, also beside threads that do not."""

from __future__ import annotations

import subprocess
import sys

import pytest

RANK = """
import atexit, sys, threading, time
from nl.dist import leaving as module

module.met = lambda: {met}
atexit.register(lambda: print("registered"))
late = lambda: (time.sleep(0.3), print("thread"))
threading.Thread(target=late).start()
threading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()


class Last:
    def __del__(self):
        print("taken down")


last = Last()
with module.leaving():
    sys.stdout.write("work, ")
    {body}
print("after")
"""


@pytest.mark.parametrize(
    ("met", "body", "code", "words"),
    [
        ("object()", "pass", 0, "work, thread\nregistered\n"),
        ("object()", "raise SystemExit(143)", 143, "work, thread\nregistered\n"),
        ("object()", "raise SystemExit('why')", 1, "work, thread\nregistered\ntaken down\n"),
        ("object()", "raise ValueError('why')", 1, "work, thread\nregistered\ntaken down\n"),
        ("None", "pass", 0, "work, after\nthread\nregistered\ntaken down\n"),
    ],
)
def test_codes_and_words(met: str, body: str, code: int, words: str) -> None:
    text = RANK.format(met=met, body=body)
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code
    assert done.stdout == words
    assert ("why" in done.stderr) == ("why" in body)


