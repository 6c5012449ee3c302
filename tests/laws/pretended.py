"""A device that is not there: ``python -m tests.laws.pretended FOLDER CASE...`` prints JSON.

A tensor on the pretended device is a tensor on the CPU in disguise, so that programs there must
find the numbers that they find on the CPU. An operation on tensors of both fails, as on a GPU; so
does, where a step may not wait, whatever needs a number or a size from the device. In a process of
its own, because PyTorch takes such a device for good. Automatic mixed precision is not pretended.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

import nl.assembly
from nl.config import table
from nl.config.hydra import compose, run_config
from nl.core import state as states
from nl.dist.single import Single
from nl.optim.roles import parameter_roles
from nl.run import read_records
from nl.train.session import train
from tests.laws.conftest import small, tokens

NAME = "pretended"
ACROSS = {"copy_", "_to_copy"}
INDEXED = {"index", "index_put_", "_index_put_impl_"}
"""Their second argument may be on the CPU."""
JOINS = {"cat", "stack"}
"""A number on the CPU may meet tensors of a device, but not here."""
WAITS = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "bincount"}


class Backend(_DummyBackendModule):
    """What PyTorch asks of a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """For ``torch.autocast``, which is entered but does nothing."""
        return [torch.bfloat16]


class Disguised(Tensor):
    """A tensor on the pretended device; ``raw`` has its numbers."""

    raw: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: Tensor) -> Disguised:
        made = Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device(NAME, 0),
        )
        made.raw = raw
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def data_ptr(self) -> int:
        return self.raw.data_ptr()

    def untyped_storage(self) -> Any:
        return self.raw.untyped_storage()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy")


class Everywhere(TorchDispatchMode):
    """For operations that make tensors; ``waiting`` False: none may wait for the device."""

    waiting = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


MODE = Everywhere()


@contextmanager
def no_waiting() -> Iterator[None]:
    MODE.waiting = False
    try:
        yield
    finally:
        MODE.waiting = True


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """An operation, on the device if it is asked for it or given a tensor of it."""
    name = func.__name__.split(".")[0]
    flat, spec = tree_flatten((args, kwargs))
    device = kwargs.get("device")
    there = any(isinstance(x, Disguised) for x in flat)
    if there:
        _check(name, args, kwargs)
    if device is not None:
        there = torch.device(device).type == NAME
    given: dict[int, Tensor] = {}

    def plain(x: Any) -> Any:
        if isinstance(x, torch.device) and x.type == NAME:
            return torch.device("cpu")
        if isinstance(x, Tensor):
            raw = x.raw if isinstance(x, Disguised) else x
            given[id(raw)] = x
            return raw
        return x

    def disguised(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if id(x) in given and (name != "_to_copy" or device is None):
            return given[id(x)]
        return Disguised(x) if there else x

    own, more = tree_unflatten([plain(x) for x in flat], spec)
    return tree_map(disguised, func(*own, **more))


def _check(name: str, args: Any, kwargs: Any) -> None:
    """Refuse tensors of two devices, and waiting where nothing may wait."""
    used = [x for i, x in enumerate(args) if not (name in INDEXED and i == 1)]
    here = [
        tuple(x.shape)
        for x in tree_flatten((used, kwargs))[0]
        if isinstance(x, Tensor) and not isinstance(x, Disguised) and (x.dim() or name in JOINS)
    ]
    if here and name not in ACROSS:
        raise RuntimeError(f"{name}: tensors on two devices, {here} on the CPU")
    masks = name in INDEXED and any(x is not None and x.dtype == torch.bool for x in args[1])
    if (name in WAITS or masks) and not MODE.waiting:
        raise RuntimeError(f"{name}: waits for the device")


def numbers(tensor: Tensor) -> Tensor:
    return tensor.raw if isinstance(tensor, Disguised) else tensor


Found = dict[str, Tensor]


def trained(model: Any, place: torch.device, optim: str = "adamw") -> Found:
    """One step, nothing in it waits: loss, backward pass, clipping, optimizer."""
    x, y = tokens(3, 9).to(place), tokens(3, 9, 1).to(place)
    named = list(model.named_parameters())
    optimizer = table("optim")[optim]().build(named, roles=parameter_roles(model))
    with no_waiting():
        nll, _ = model.nll(x, y)
        nll.mean().backward()
        grads = {name: p.grad for name, p in named if p.grad is not None}
        assert all(grad.device.type == place.type for grad in grads.values())
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return {
        "nll": nll.detach(),
        "norm": norm,
        **grads,
        **{f"new {n}": p.detach() for n, p in named},
    }


@torch.no_grad()
def streamed(model: Any, place: torch.device) -> Found:
    """Read on from a State, frozen, some rows of it, fresh rows, documents."""
    x = tokens(3, 9).to(place)
    out = model(x)
    state = model(x[:, :5], out.state, write=False).state
    found: Found = {"first": out.pred, **states.flatten(state)[0]}
    assert all(tensor.device.type == place.type for tensor in found.values())
    if not model.shares_rows:
        found["two"] = model(x[:2], states.select_rows(state, [0, 2])).pred
        found["fresh"] = model(x, model.reset_rows(state, [1])).pred
        found["documents"] = model(x, starts=[[], [5], [1, 7]]).pred
    return found


def planted_copy(model: Any, place: torch.device) -> Found:
    return {"sum": model(tokens(1, 2).to(place)).pred + torch.ones(1)}


def planted_wait(model: Any, place: torch.device) -> Found:
    with no_waiting():
        return {"sum": torch.tensor(model(tokens(1, 2).to(place)).pred.sum().item())}


ACTIONS = {"train": trained, "stream": streamed, "copy": planted_copy, "wait": planted_wait}


def of_model(name: str) -> Callable[[torch.device], Found]:
    """A case is kind, options of it as JSON, what is done."""
    kind, options, done = name.split(" ")
    action: Callable[..., Found] = ACTIONS.get(done) or partial(trained, optim=done)

    def act(place: torch.device) -> Found:
        return action(small(kind, **json.loads(options)).to(place), place)

    return act


def of_run(name: str, folder: Path) -> Callable[[torch.device], Found]:
    """``run`` and overrides: training from the first step to the summary, saved, evaluated."""

    def act(place: torch.device) -> Found:
        chosen = [*name.split(" ")[1:], f"run.dir={folder / place.type}"]
        config = nl.assembly.resolve_model(run_config(compose("pilot_smoke", chosen)))
        strategy = Single(place)
        try:
            path = train(config, strategy, nl.assembly.build)
        finally:
            strategy.close()
        rows = [*read_records(path / "metrics.jsonl"), *read_records(path / "evals.jsonl")]
        values = [
            value
            for row in rows
            for key, value in sorted(row.items())
            if isinstance(value, float) and key not in ("time", "seconds") and "perf/" not in key
        ]
        assert values
        return {"rows": torch.tensor(values)}

    return act


def complaint(name: str, folder: Path) -> str | None:
    """What is wrong with a case, with the line of nl where it is; None: nothing."""
    act = of_run(name, folder) if name.startswith("run ") else of_model(name)
    wanted = act(torch.device("cpu"))
    try:
        with MODE:
            found = act(torch.device(NAME, 0))
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if "/nl/" in f.filename]
        return f"{type(error).__name__} at {own[-1] if own else 'here'}: {str(error)[:300]}"
    if wanted.keys() != found.keys():
        return f"other results: {sorted(wanted.keys() ^ found.keys())}"
    for key, tensor in wanted.items():
        if not torch.allclose(numbers(found[key]), tensor, rtol=1e-3, atol=1e-4, equal_nan=True):
            return f"{key}: other numbers"
    return None


def pretend() -> None:
    """Make the device known to PyTorch."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")

    def then_moved(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Lists become tensors below the modes, where the device is not known."""
        return lambda data, *rest, device=None, **more: make(data, *rest, **more).to(device)

    for name in ("tensor", "as_tensor"):
        setattr(torch, name, then_moved(getattr(torch, name)))


def main() -> None:
    torch.set_num_threads(1)
    pretend()
    folder = Path(sys.argv[1])
    names = sys.argv[2:]
    print(json.dumps([complaint(name, folder / str(i)) for i, name in enumerate(names)]))


if __name__ == "__main__":
    main()
