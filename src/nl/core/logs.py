"""Python logging: one format, rank 0 speaks, other ranks write to their file. Floor 0."""

from __future__ import annotations

import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path

FILE_BYTES, KEPT = 5 << 20, 5
"""A log file begins anew at this size; so many older ones stay beside it."""


def setup_logging(rank: int = 0, file: Path | None = None, level: int = logging.INFO) -> None:
    """Send the ``nl`` logger to stderr (rank 0 only) and, where given, to a file (every rank).

    A file belongs to one rank of one run, so that none is shared; it is rotated.
    """
    logger = logging.getLogger("nl")
    logger.setLevel(level)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    form = logging.Formatter(f"%(asctime)s [rank {rank}] %(levelname)s %(message)s", "%H:%M:%S")
    if rank == 0:
        console = logging.StreamHandler()
        console.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(console)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        to_file = RotatingFileHandler(file, maxBytes=FILE_BYTES, backupCount=KEPT, encoding="utf-8")
        to_file.setFormatter(form)
        logger.addHandler(to_file)


def get_logger(name: str) -> logging.Logger:
    """The logger of one module, below ``nl``."""
    return logging.getLogger(name if name.startswith("nl") else f"nl.{name}")
