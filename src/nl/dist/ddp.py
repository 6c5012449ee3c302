"""Data parallel: a whole model per process, gradients averaged. Floor 4."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nl.dist.group import Distributed


class DDP(Distributed):
    """The whole model and the whole optimizer on every rank."""

    name = "ddp"

    def wrap(self, objective: nn.Module) -> nn.Module:
        """Averaging hooks on every parameter; parameters are broadcast from rank 0 once."""
        model = getattr(objective, "model", objective)
        with warnings.catch_warnings():
            # Its successor is not in every version of torch that nl runs with.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return DistributedDataParallel(
                objective,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                find_unused_parameters=bool(getattr(model, "may_skip_parameters", False)),
            )

    @contextlib.contextmanager
    def microbatch(self, last: bool) -> Iterator[None]:
        """Reduce after the last micro-batch only: no_sync has to surround the forward as well."""
        assert isinstance(self.wrapped, DistributedDataParallel)
        with contextlib.nullcontext() if last else self.wrapped.no_sync():
            yield
