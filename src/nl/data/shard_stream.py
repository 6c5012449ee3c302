"""stream=shards: batches of token windows from a data directory. Floor 1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nl.config import ConfigError, register, require
from nl.config.groups import StreamConfig
from nl.data.manifest import read_manifest
from nl.data.order import MixturePlan, Plan, SequentialPlan
from nl.data.stream import RowStream
from nl.data.windows import TokenWindows


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
    verify: bool = True
    """Compare the SHA-256 of every shard with the manifest when it is opened."""

    def __post_init__(self) -> None:
        for name in ("seq_len", "batch_size"):
            value = getattr(self, name)
            require(value >= 1, f"{name}: {value}; must be >= 1.")
        check_domains(self.domains)
        require(
            len(self.weights) in (0, len(self.domains)),
            f"weights: {len(self.weights)} numbers for {len(self.domains)} domains; "
            "give one weight per entry of domains, or none.",
        )
        require(all(w > 0 for w in self.weights), f"weights: {list(self.weights)}; must be > 0.")

    def splits(self) -> tuple[str, ...]:
        """``train`` and one ``val/<domain>`` per domain; ``test/<domain>`` can be built too."""
        known = read_manifest(self.path).splits.get("val", {})
        return ("train", *(f"val/{name}" for name in self.domains or known))

    def vocab_size(self) -> int | None:
        """The tokenizer's vocabulary."""
        return read_manifest(self.path).tokenizer.vocab_size

    def build(self, split: str, *, seed: int, rank: int, world: int) -> RowStream:
        """The stream of ``train`` (endless), or of ``val[/domain]``, ``test[/domain]`` (once)."""
        if split == "train":
            windows = TokenWindows(self.path, "train", self.domains, self.seq_len, self.verify)
            weights = self.weights or windows.sizes
            mixture = MixturePlan(windows.sizes, windows.names, weights, seed)
            plan: Plan = mixture
            order = f"seed {seed}, parts {mixture.parts}"
        else:
            windows = held_out_windows(self, split)
            plan, order = SequentialPlan(windows.sizes), "in order"
        return RowStream(
            plan,
            windows,
            batch_size=self.batch_size,
            rank=rank,
            world=world,
            identity=f"{split} {windows.digest}, seq_len {self.seq_len}, {order}",
        )


def check_domains(domains: tuple[str, ...]) -> None:
    """Refuse a domain that is named twice."""
    require(len(set(domains)) == len(domains), f"domains: {list(domains)}; name each once.")


def held_out_windows(config: ShardStreamConfig, split: str) -> TokenWindows:
    """Windows of ``val``, ``val/<domain>``, ``test`` or ``test/<domain>``.

    Raises:
        ConfigError: any other split.
    """
    name, _, domain = split.partition("/")
    if name not in ("val", "test"):
        raise ConfigError(
            f"split {split!r} of {Path(config.path)}: use train, val, test, val/<domain> or "
            "test/<domain>."
        )
    domains = (domain,) if domain else config.domains
    return TokenWindows(config.path, name, domains, config.seq_len, config.verify)
