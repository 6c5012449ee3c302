"""Around every data script: progress on stderr, one line per complaint. Floor 1."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from nl.config import ConfigError


def run(main: Callable[[], None]) -> int:
    """Run a script's work; the exit code is 2 after a complaint that the user can mend."""
    log = logging.getLogger("nl.data")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        main()
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; nothing half-written was left\n")
        return 130
    finally:
        log.removeHandler(handler)
    return 0
