"""Models on a device that is not there: ``python -m tests.laws.pretended CASE...`` prints JSON.

Fake tensors on a pretended accelerator have shapes, dtypes and a device, but no numbers. Tensors on
different devices then fail to meet, in both passes, and so does whatever waits for a number
(``item``, ``tolist``, a branch on a tensor). A process of its own, because PyTorch takes such a
device for good. Automatic mixed precision is not pretended.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

import nl.assembly  # noqa: F401 - registers the parts
from nl.config import table
from nl.core import state as states
from nl.optim.roles import parameter_roles
from tests.laws.conftest import block_kinds, small

DEVICE = "pretended"
MODE = FakeTensorMode(allow_non_fake_inputs=False)
ROWS, TOKENS = 3, 9
"""Two chunks and a token more."""


class Backend(_DummyBackendModule):
    """What PyTorch asks of a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """For ``torch.autocast``, which is entered but does nothing."""
        return [torch.bfloat16]


def pretend() -> None:
    """Make the device known; without numbers nothing can be copied to it from Python's lists."""
    _setup_privateuseone_for_python_backend(DEVICE, backend_module=Backend())
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")

    def copied(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(data: Any, *rest: Any, device: Any = None, **more: Any) -> Tensor:
            if isinstance(data, Tensor) or device is None:
                return make(data, *rest, device=device, **more)
            here = make(data, *rest, **more)
            return torch.empty(here.shape, dtype=here.dtype, device=device)

        return made

    for name in ("tensor", "as_tensor"):
        setattr(torch, name, copied(getattr(torch, name)))


def move(model: nn.Module) -> None:
    """``model.to(device)`` for a model with numbers: parameters, tied ones once, and buffers."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    made[id(tensor)] = torch.empty(tensor.shape, dtype=tensor.dtype, device=DEVICE)
                    if isinstance(tensor, nn.Parameter):
                        new = nn.Parameter(made[id(tensor)], requires_grad=tensor.requires_grad)
                        made[id(tensor)] = new
                held[name] = made[id(tensor)]


def ids(length: int) -> Tensor:
    return torch.zeros(ROWS, length, dtype=torch.long, device=DEVICE)


def trained(model: Any, optim: str = "adamw") -> None:
    """One step: loss, backward pass, clipping, optimizer."""
    nll, _ = model.nll(ids(TOKENS), ids(TOKENS))
    nll.mean().backward()
    named = list(model.named_parameters())
    assert {p.grad.device.type for _, p in named if p.grad is not None} == {DEVICE}
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    table("optim")[optim]().build(named, roles=parameter_roles(model)).step()


@torch.no_grad()
def streamed(model: Any) -> None:
    """Read on from a State, frozen, some rows of it, fresh rows, documents."""
    state = model(ids(TOKENS)).state
    named, _ = states.flatten(model(ids(5), state, write=False).state)
    assert {tensor.device.type for tensor in named.values()} == {DEVICE}
    if not (model.taught and model.config.cms.scope == "batch"):
        states.select_rows(state, [0, 2])
        model(ids(1), model.reset_rows(state, [1]))
        model(ids(TOKENS), starts=[[], [5], [1, 7]])


def planted_copy(model: Any) -> None:
    (model(ids(2)).pred + torch.ones(())[None]).sum().backward()


def planted_wait(model: Any) -> None:
    model(ids(2)).pred.sum().item()


def case(name: str) -> tuple[Callable[[Any], None], Any]:
    """What is done with which model; a case is kind, options of it as JSON, what is done."""
    kind, options, done = name.split(" ")
    known = {"train": trained, "stream": streamed, "copy": planted_copy, "wait": planted_wait}
    return known.get(done) or partial(trained, optim=done), small(kind, **json.loads(options))


def complaints(names: list[str]) -> Iterator[str | None]:
    """What is wrong with each case, with the line of nl where it is; None: nothing."""
    for name in names:
        action, model = case(name)
        try:
            with MODE:
                move(model)
                action(model)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the result
            frames = traceback.extract_tb(error.__traceback__)
            own = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if "/nl/" in f.filename]
            yield f"{type(error).__name__} at {own[-1] if own else 'here'}: {str(error)[:200]}"
        else:
            yield None


def main() -> None:
    torch.set_num_threads(1)
    assert block_kinds()
    pretend()
    print(json.dumps(list(complaints(sys.argv[1:]))))


if __name__ == "__main__":
    main()
