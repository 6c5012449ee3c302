"""``train.profile``: some steps through torch.profiler, one trace per rank. Floor 5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nl.config.guards import ProfileConfig
from nl.core.logs import get_logger

log = get_logger(__name__)


class StepProfiler:
    """Records the steps ``first`` to ``last`` into ``artifacts/profile_rank_<n>.json``."""

    def __init__(self, config: ProfileConfig, artifacts: Path, rank: int) -> None:
        """Record nothing yet."""
        self.config = config
        self.path = artifacts / f"profile_rank_{rank:02d}.json"
        self._profile: Any = None

    def before(self, step: int) -> None:
        """A step begins."""
        config = self.config
        if config.first and self._profile is None and config.first <= step <= config.last:
            kinds = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                kinds.append(torch.profiler.ProfilerActivity.CUDA)
            self._profile = torch.profiler.profile(activities=kinds)
            self._profile.start()

    def after(self, step: int) -> None:
        """A step ended."""
        if self._profile is not None and step >= self.config.last:
            self.close()

    def close(self) -> None:
        """Write what was recorded, if anything; a second trace of a run replaces the first."""
        if self._profile is None:
            return
        profile, self._profile = self._profile, None
        profile.stop()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            profile.export_chrome_trace(str(self.path))
        except OSError as error:
            log.error("train.profile: %s could not be written: %s", self.path, error)
            return
        log.info("train.profile: %s", self.path)
