"""Around every data script: progress on stderr, one line per complaint. Floor 1."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from nl.config import ConfigError
from nl.core.stopped import stopped_code, terminable

LOG = logging.getLogger("nl.data")


def run(main: Callable[[], None]) -> int:
    """Run a script's work.

    Returns:
        0; 2 after a complaint that the user can mend; 130 after Ctrl-C, 143 after SIGTERM.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    try:
        with terminable():
            main()
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt as stop:
        sys.stderr.write("stopped; the same command goes on from what is finished\n")
        return stopped_code(stop)
    finally:
        LOG.removeHandler(handler)
    return 0
