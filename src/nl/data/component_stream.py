"""stream=components: windows inside documents, an exact budget shared by components. Floor 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nl.config import ConfigError, register, require
from nl.config.groups import StreamConfig
from nl.data.component_labels import open_labelled
from nl.data.component_windows import (
    ComponentPlan,
    ComponentWindows,
    Cut,
    Mixing,
    prefix_of,
    seeded_order,
)
from nl.data.components import (
    ComponentData,
    Deficit,
    common_budget,
    known_names,
    largest,
    shares,
    special_ids,
)
from nl.data.frozen_windows import FrozenWindows, frozen_windows
from nl.data.manifest import read_manifest
from nl.data.order import Plan, SequentialPlan
from nl.data.shards import Verify
from nl.data.stream import RowStream


@register("stream", "components")
@dataclass(frozen=True, kw_only=True)
class ComponentStreamConfig(StreamConfig):
    """Windows of several components, of each as many as of the others, whatever their number."""

    path: str
    """Data directory with a manifest.json; its domains are the components."""
    components: tuple[str, ...] = ()
    """Components that are trained on; empty: all, or those of ``top``."""
    top: int = 0
    """Train on so many components, those that hold most; 0: on ``components``."""
    top_by: Literal["tokens", "documents"] = "tokens"
    """What the components of ``top`` hold most of, under the labels of the data."""
    labels: Literal["observed", "permuted"] = "observed"
    """Of which component a document is. observed: what the data says. permuted: labels are permuted
    over the documents of each split, of all components of the directory, as the control of a study:
    texts stay, and every component keeps its number of documents (not of tokens). Training, shares,
    validation and the windows of evaluators all follow them."""
    label_seed: int = 0
    """Seed of the permutation (labels=permuted): part of the data, not of a run."""
    window: int = 100
    """Tokens of a window; the one behind it is read as the last target."""
    legacy_w: bool = False
    """A row is the window and nothing else: one target less than it has tokens."""
    bos: bool = False
    """Put BOS in front of every window, so that its first token is a target, too."""
    budget: int = 0
    """Windows of an epoch, of all components together; 0: what the smallest component of the whole
    directory can give alone, down to a number that every number of components can share."""
    deficit: Deficit = "error"
    """A component that is smaller than its share: error, or the others give what it lacks."""
    mixing: Mixing = "iid"
    """iid: windows in one shuffled order. stratified: every batch has as many rows of each
    component. cyclic: batches of one component, in turn. sequential: ``epochs`` epochs of one
    component, then of the next."""
    epochs: int = 1
    """Epochs of a component before the next one begins (mixing=sequential)."""
    batch_size: int = 8
    """Rows per micro-batch, over all ranks."""
    verify: Literal["full", "sample", "header"] | bool = True
    """How much of every shard is compared with the manifest when it is opened. true or full: its
    SHA-256; sample: the digests of a few blocks, drawn anew each time; false or header: sizes and
    header."""

    def __post_init__(self) -> None:
        for name, least in (("window", 1 + self.legacy_w), ("batch_size", 1), ("epochs", 1)):
            value = getattr(self, name)
            require(value >= least, f"{name}: {value}; must be >= {least}.")
        for name in ("top", "budget", "label_seed"):
            require(getattr(self, name) >= 0, f"{name}: {getattr(self, name)}; must be >= 0.")
        unique = len(set(self.components)) == len(self.components)
        require(unique, f"components: {list(self.components)}; name each once.")
        both = bool(self.top) and bool(self.components)
        require(not both, f"top: {self.top}; components are named: leave one of the two out.")
        used = bool(self.top) or self.top_by == "tokens"
        require(used, f"top_by: {self.top_by}; is of top: set top, or leave it out.")
        drawn = self.labels == "permuted" or not self.label_seed
        require(drawn, f"label_seed: {self.label_seed}; is of labels=permuted; leave it out.")
        sequential = self.epochs == 1 or self.mixing == "sequential"
        require(sequential, f"epochs: {self.epochs}; is of mixing=sequential; leave it out.")
        equal = self.deficit == "error" or self.mixing in ("iid", "sequential")
        require(
            equal,
            f"deficit: {self.deficit}; mixing={self.mixing} needs equal shares: set deficit=error, "
            "or mixing to iid or sequential.",
        )

    @property
    def seq_len(self) -> int:
        """Positions of a row."""
        return self.window - self.legacy_w + self.bos

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The components that are trained on.

        Raises:
            ConfigError: one that the directory does not have, with those it has.
        """
        root, manifest = Path(self.path), read_manifest(self.path)
        if self.top:
            return tuple(largest(manifest, self.top, self.top_by))
        known_names(manifest, "train", self.components, root)
        return self.components or tuple(manifest.splits["train"])

    @property
    def drawn_labels(self) -> int | None:
        """The seed of permuted labels; None: they are those of the data."""
        return self.label_seed if self.labels == "permuted" else None

    @property
    def _key(self) -> str:
        """What complaints about shares name."""
        return ("stream.labels=permuted, " if self.labels == "permuted" else "") + "stream.budget"

    @property
    def _hint(self) -> str:
        return ", or take another stream.label_seed" if self.labels == "permuted" else ""

    def facts(self) -> dict[str, Any]:
        """What a run's ``meta.json`` says of its data."""
        drawn = {} if self.drawn_labels is None else {"label_seed": self.label_seed}
        return {"labels": self.labels, **drawn}

    def _open(self, split: str, names: Sequence[str], verify: Verify) -> ComponentData:
        return open_labelled(self.path, split, names, verify, self.drawn_labels)

    @property
    def cut(self) -> Cut:
        """How rows are cut.

        Raises:
            ConfigError: BOS is asked for, and the tokenizer is not known.
        """
        begin = special_ids(Path(self.path))[0] if self.bos else None
        require(
            not self.bos or begin is not None,
            f"bos: true, but the tokenizer of {self.path} cannot be loaded; set bos=false.",
        )
        return Cut(self.window, self.legacy_w, begin)

    def splits(self) -> tuple[str, ...]:
        """``train`` and one ``val/<component>`` per component; ``test/<component>`` exist, too."""
        known = read_manifest(self.path).splits.get("val", {})
        tokens = {name: info.tokens for name, info in known.items()}
        if self.labels == "permuted" and known:
            data = self._open("val", tuple(known), "header")
            pairs = zip(data.names, data.documents, strict=True)
            tokens = {name: int(one.length.sum()) for name, one in pairs}
        held = [name for name in self.names if tokens.get(name, 0) > self.window]
        return ("train", *(f"val/{name}" for name in held))

    def vocab_size(self) -> int | None:
        """The tokenizer's vocabulary."""
        return read_manifest(self.path).tokenizer.vocab_size

    def share_of(self, data: ComponentData | None = None) -> dict[str, int]:
        """Windows of each component in an epoch; they add up to the budget.

        Raises:
            ConfigError: the budget cannot be shared; with the counts.
        """
        if not self.budget:
            every = tuple(read_manifest(self.path).splits["train"])
            whole = self._windows(self._open("train", every, "header"))
            return shares(
                {name: whole[name] for name in self.names},
                common_budget(whole, self._key),
                self.deficit,
                self._key,
                self._hint,
            )
        data = data or self._open("train", self.names, "header")
        return shares(self._windows(data), self.budget, self.deficit, self._key, self._hint)

    def _windows(self, data: ComponentData) -> Mapping[str, int]:
        pairs = zip(data.names, data.documents, strict=True)
        return {n: int(d.windows(self.window, legacy=self.legacy_w).sum()) for n, d in pairs}

    def build(self, split: str, *, seed: int, rank: int, world: int) -> RowStream:
        """The stream of ``train`` (endless), or of ``val[/component]``, ``test[/component]``.

        Raises:
            ConfigError: what the data lacks, or a batch that cannot be stratified.
        """
        if split != "train":
            return self._held_out(split, rank=rank, world=world)
        data = self._open("train", self.names, self.verify)
        sizes = self.share_of(data)
        count = len(data.names)
        require(
            self.mixing != "stratified" or self.batch_size % count == 0,
            f"stream.batch_size: {self.batch_size}; mixing=stratified has equal rows of {count} "
            f"components in every batch: use a multiple of {count}.",
        )
        windows = training_windows(data, self.cut, sizes, seed)
        plan = ComponentPlan(
            windows.sizes,
            data.names,
            self.mixing,
            batch_size=self.batch_size,
            epochs=self.epochs,
            seed=seed,
        )
        what = f"{data.digest}, {sizes}, {self.cut}, {self.mixing} {self.epochs}, seed {seed}"
        return self._stream(plan, windows, f"train {what}", rank=rank, world=world)

    def _held_out(self, split: str, *, rank: int, world: int) -> RowStream:
        """All windows of a held-out split, once, documents in order and cut at their beginning."""
        name, _, component = split.partition("/")
        if name not in ("val", "test"):
            raise ConfigError(
                f"split {split!r} of {self.path}: use train, val, test, val/<component> or "
                "test/<component>."
            )
        names = (component,) if component else self.names
        data = self._open(name, names, self.verify)
        every = [np.arange(d.length.size, dtype=np.int64) for d in data.documents]
        pairs = zip(data.documents, every, strict=True)
        prefixes = [prefix_of(d, self.cut, None, order) for d, order in pairs]
        windows = ComponentWindows(data, self.cut, prefixes, None)
        require(
            sum(windows.sizes) > 0,
            f"stream.window: {self.window}; no document of {split} of {self.path} holds one.",
        )
        what = f"{split} {data.digest}, {self.cut}, in order"
        return self._stream(SequentialPlan(windows.sizes), windows, what, rank=rank, world=world)

    def _stream(
        self, plan: Plan, windows: ComponentWindows, identity: str, *, rank: int, world: int
    ) -> RowStream:
        size = self.batch_size
        return RowStream(plan, windows, batch_size=size, rank=rank, world=world, identity=identity)

    def check_held_out(self, split: str) -> None:
        """Refuse a held-out split in which a component of the directory has no window.

        Raises:
            ConfigError: naming the component, or the splits there are.
        """
        manifest = read_manifest(self.path)
        known_names(manifest, split, (), Path(self.path))
        found = self._windows(self._open(split, tuple(manifest.splits[split]), "header"))
        for name, windows in found.items():
            require(
                windows > 0,
                f"split: {split}; no document of component {name!r} holds a window of "
                f"{self.window} + 1 tokens there: hold out more of it, or take another split.",
            )

    def frozen(self, split: str, windows: int, seed: int) -> FrozenWindows:
        """The windows of all components of a held-out split that every model is scored on."""
        more: dict[str, Any] = {"trained_on": self.names, "budget": self.share_of()}
        facts = more | self.facts()
        return frozen_windows(
            self.path, split, self.cut, windows, seed, facts, label_seed=self.drawn_labels
        )


def training_windows(
    data: ComponentData, cut: Cut, sizes: Mapping[str, int], seed: int
) -> ComponentWindows:
    """The windows of every share, documents in the order of the seed."""
    prefixes = [
        prefix_of(documents, cut, sizes[name], seeded_order(documents.length.size, seed, name))
        for name, documents in zip(data.names, data.documents, strict=True)
    ]
    return ComponentWindows(data, cut, prefixes, seed)
