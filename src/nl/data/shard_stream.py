"""stream=shards: batches of token windows from a data directory. Floor 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from nl.config import ConfigError, register, require
from nl.config.groups import StreamConfig
from nl.data.manifest import read_manifest
from nl.data.order import ContiguousPlan, Ints, MixturePlan, Plan, SequentialPlan
from nl.data.shards import Verify
from nl.data.stream import Boundaries, RowStream
from nl.data.windows import TokenWindows, readable


@register("stream", "shards")
@dataclass(frozen=True, kw_only=True)
class ShardStreamConfig(StreamConfig):
    """Token windows, domains mixed by weight, each domain shuffled anew every epoch."""

    path: str
    """Data directory with a manifest.json, as scripts/data/shard_corpus.py writes it."""
    seq_len: int = 256
    """Tokens per row."""
    batch_size: int = 8
    """Rows per micro-batch, over all ranks."""
    domains: tuple[str, ...] = ()
    """Domains to train and validate on; empty: all."""
    weights: tuple[float, ...] = ()
    """Share of rows per domain, in the order of ``domains``; empty: by size."""
    order: Literal["shuffled", "contiguous"] = "shuffled"
    """contiguous: row b of a batch goes on where row b of the last one ended (train.carry)."""
    documents: Literal["ignore", "reset"] = "ignore"
    """reset: a document that begins inside a row begins with a fresh State and knows nothing of
    the one before; the last token of a document has no target."""
    verify: Literal["full", "sample", "header"] | bool = True
    """How much of every shard is compared with the manifest when it is opened. true or full: its
    SHA-256; sample: the digests of a few blocks, drawn anew each time; false or header: sizes and
    header."""

    def __post_init__(self) -> None:
        for name in ("seq_len", "batch_size"):
            value = getattr(self, name)
            require(value >= 1, f"{name}: {value}; must be >= 1.")
        unique = len(set(self.domains)) == len(self.domains)
        require(unique, f"domains: {list(self.domains)}; name each once.")
        require(
            len(self.weights) in (0, len(self.domains)),
            f"weights: {len(self.weights)} numbers for {len(self.domains)} domains; "
            "give one weight per entry of domains, or none.",
        )
        require(
            self.order == "shuffled" or not self.weights,
            f"weights: {list(self.weights)}; in contiguous order domains follow one another: "
            "leave stream.weights empty or set stream.order=shuffled.",
        )
        require(all(w > 0 for w in self.weights), f"weights: {list(self.weights)}; must be > 0.")

    def splits(self) -> tuple[str, ...]:
        """``train`` and one ``val/<domain>`` per domain; ``test/<domain>`` can be built too.

        A domain whose held-out text does not fill one window has none.
        """
        known = readable(read_manifest(self.path), "val", self.seq_len, self.domains)
        return ("train", *(f"val/{name}" for name in known))

    def vocab_size(self) -> int | None:
        """The tokenizer's vocabulary."""
        return read_manifest(self.path).tokenizer.vocab_size

    def build(self, split: str, *, seed: int, rank: int, world: int) -> RowStream:
        """The stream of ``train`` (endless), or of ``val[/domain]``, ``test[/domain]`` (once)."""
        if split != "train":
            return held_out_stream(self, split, rank=rank, world=world)
        windows = TokenWindows(self.path, "train", self.domains, self.seq_len, self.verify)
        weights = self.weights or windows.sizes
        plan: Plan
        if self.order == "contiguous":
            plan = ContiguousPlan(windows.sizes, self.batch_size, endless=True)
            order = "contiguous"
        else:
            plan = mixed = MixturePlan(windows.sizes, windows.names, weights, seed)
            order = f"seed {seed}, {dict(zip(windows.names, mixed.parts, strict=True))}"
        return RowStream(
            plan,
            windows,
            batch_size=self.batch_size,
            rank=rank,
            world=world,
            identity=f"train {windows.digest}, seq_len {self.seq_len}, {order}",
            boundaries=boundaries(windows, plan, self.documents),
        )


class TokenData(Protocol):
    """What the stream configurations over a data directory have in common."""

    @property
    def path(self) -> str: ...
    @property
    def domains(self) -> tuple[str, ...]: ...
    @property
    def seq_len(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def documents(self) -> Literal["ignore", "reset"]: ...
    @property
    def verify(self) -> Verify: ...


def boundaries(windows: TokenWindows, plan: Plan, documents: str) -> Boundaries | None:
    """Where the documents of a batch begin; None where they are ignored.

    A row that begins anew in contiguous order begins a document whatever its text does.
    """
    windows.apart = documents == "reset"
    if not windows.apart:
        return None

    def found(rows: Ints, source: Ints, index: Ints) -> tuple[tuple[int, ...], ...]:
        starts = windows.starts(source, index)
        if not isinstance(plan, ContiguousPlan):
            return starts
        anew = plan.begins(rows).tolist()
        pairs = zip(starts, anew, strict=True)
        return tuple((0, *s) if new and s[:1] != (0,) else s for s, new in pairs)

    return found


def held_out_stream(config: TokenData, split: str, *, rank: int, world: int) -> RowStream:
    """All windows of ``val``, ``val/<domain>``, ``test`` or ``test/<domain>``, once, in order.

    In contiguous order what does not fill all rows of a batch is left out.

    Raises:
        ConfigError: any other split.
    """
    name, _, domain = split.partition("/")
    if name not in ("val", "test"):
        raise ConfigError(
            f"split {split!r} of {config.path}: use train, val, test, val/<domain> or "
            "test/<domain>."
        )
    domains = (domain,) if domain else config.domains
    windows = TokenWindows(config.path, name, domains, config.seq_len, config.verify)
    plan: Plan = SequentialPlan(windows.sizes)
    if getattr(config, "order", "shuffled") == "contiguous":
        plan = ContiguousPlan(windows.sizes, config.batch_size, endless=False)
    return RowStream(
        plan,
        windows,
        batch_size=config.batch_size,
        rank=rank,
        world=world,
        identity=f"{split} {windows.digest}, seq_len {config.seq_len}, in order",
        boundaries=boundaries(windows, plan, config.documents),
    )
