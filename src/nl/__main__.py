"""``python -m nl`` is the ``nl`` command. Floor 8."""

import sys

from nl.cli import main

if __name__ == "__main__":
    sys.exit(main())
