"""Around every data script: progress on stderr, one line per complaint. Floor 1."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from nl.config import ConfigError

LOG = logging.getLogger("nl.data")


def run(main: Callable[[], None]) -> int:
    """Run a script's work; the exit code is 2 after a complaint that the user can mend."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    try:
        main()
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from what is finished\n")
        return 130
    finally:
        LOG.removeHandler(handler)
    return 0
