"""Settings of a file ``.env`` that the environment lacks; what they say is never shown. Floor 0."""

from __future__ import annotations

import os
import re
from pathlib import Path

LINE = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*?)\s*")
QUOTED = re.compile(r"""(['"])(.*)\1\s*(?:#.*)?""")


def read_env_file(file: Path = Path(".env"), prefix: str = "WANDB_") -> tuple[str, ...]:
    """Put ``NAME=value`` lines of a file into the environment, where it does not have the name.

    Blank lines, comments and other names are left alone; quotes around a value go.

    Args:
        file: read if it exists.
        prefix: of the names that are taken.

    Returns:
        The names that were set, without what they were set to.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ()
    found = []
    for line in text.splitlines():
        match = LINE.fullmatch(line)
        if match is None or not match[1].startswith(prefix) or match[1] in os.environ:
            continue
        quoted = QUOTED.fullmatch(match[2])
        os.environ[match[1]] = quoted[2] if quoted else match[2].partition(" #")[0].rstrip()
        found.append(match[1])
    return tuple(found)
