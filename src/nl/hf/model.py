"""A language model of nl as a model class of transformers. Floor 8."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

import nl.assembly  # noqa: F401 - every part registers itself
from nl.config import ConfigError, require
from nl.config.hydra import run_config
from nl.core.batch import IGNORE
from nl.dist.hf_folder import MODEL_TYPE
from nl.hf.cache import Group, NLCache, spans

IMPLIED = ("position_ids", "cache_position", "token_type_ids", "return_dict")
"""Arguments that ``generate`` and tokenizers give and that follow from the tokens read so far."""


class NLConfig(PretrainedConfig):
    """``nl_config``: the RunConfig as plain data; ``write``: whether memories are written."""

    model_type = MODEL_TYPE

    def __init__(
        self, nl_config: dict[str, Any] | None = None, write: bool = True, **rest: Any
    ) -> None:
        self.nl_config, self.write = nl_config or {}, write
        rest.setdefault("tie_word_embeddings", False)
        super().__init__(**rest)


class NLForCausalLM(PreTrainedModel, GenerationMixin):
    """Token ids (B, T) -> logits (B, T, vocab_size), with the State as cache.

    Memories are written by what is read where ``config.write`` is set. Padding may stand on either
    side: padded rows get what they would get alone.
    """

    config_class = NLConfig
    base_model_prefix = "model"
    _is_stateful = True
    _no_split_modules = ["Block"]  # noqa: RUF012 - the base class wants a list

    def __init__(self, config: NLConfig) -> None:
        super().__init__(config)
        require(
            bool(config.nl_config),
            "nl_config: missing from config.json; write the directory with nl export --to hf.",
        )
        run: Any = run_config(dict(config.nl_config))
        self.model = run.model.build()
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Modules have drawn their weights when they were made."""

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **given: Any) -> Any:
        """As the base class; a tensor that is missing or of another shape is refused.

        Raises:
            ConfigError: naming the tensors.
        """
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **given)
        model, facts = loaded
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            names = sorted(map(str, facts.get(kind) or ()))
            require(not names, f"{args[0] if args else cls}: {kind}: {', '.join(names[:5])}.")
        return (model, facts) if output_loading_info else model

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def get_input_embeddings(self) -> nn.Module:
        """The table of tokens; the head where they share it."""
        table: nn.Module = self.model.embed if self.model.embed is not None else self.model.head
        return table

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        head: nn.Module = self.model.head
        return head

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: NLCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """Read the tokens after those of ``past_key_values``.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T) or, after a cache, (B, all columns); 0 where there is padding.
            past_key_values: what the rows have read; it is advanced in place.
            labels: (B, T), shifted here; -100 where there is none.
            use_cache: give the State back; default: no while training.
            logits_to_keep: only so many logits at the end, or those at these places; 0: all.
            others: what follows from the cache (``IMPLIED``); anything else is refused.

        Raises:
            ConfigError: no token ids, a mask with gaps, or something this model does not have.
        """
        for name, value in others.items():
            fine = name in IMPLIED or not _asked(value)
            require(fine, f"{name}: not available; leave it out.")
        require(others.get("return_dict") is not False, "return_dict: false; leave it out.")
        if input_ids is None:
            raise ConfigError("input_ids: missing; give token ids (B, T).")
        cache = past_key_values if past_key_values is not None else NLCache()
        keep = not self.training if use_cache is None else use_cache
        logits = self._read(input_ids, attention_mask, cache)
        loss = None if labels is None else _loss(logits, labels)
        if isinstance(logits_to_keep, Tensor):
            logits = logits[:, logits_to_keep]
        elif logits_to_keep:
            logits = logits[:, -logits_to_keep:]
        made: dict[str, Any] = {"loss": loss, "logits": logits}
        return CausalLMOutputWithPast(**made, past_key_values=cache if keep else None)  # type: ignore[arg-type]

    def _read(self, tokens: Tensor, mask: Tensor | None, cache: NLCache) -> Tensor:
        """Logits (B, T, V), zero at padding; the cache is moved on."""
        rows, length = tokens.shape
        begins = not cache.groups
        spread = _spans(mask, rows, length, begins)
        groups = cache.groups or _grouped(spread)
        whole = len(groups) == 1 and (0, length) == spread[groups[0].rows[0]]
        moved, parts = [], []
        for group in groups:
            first, end = spread[group.rows[0]]
            own = tokens if whole else tokens[list(group.rows), first:end]
            out = self.model(own, group.state, write=self.config.write)
            moved.append(Group(group.rows, out.state))
            parts.append(out.pred)
        cache.groups, cache.length = tuple(moved), cache.length + length
        if whole:
            return parts[0]
        logits = parts[0].new_zeros(rows, length, parts[0].shape[-1])
        for group, part in zip(groups, parts, strict=True):
            first, end = spread[group.rows[0]]
            logits[list(group.rows), first:end] = part
        return logits


def _asked(value: Any) -> bool:
    return value is not None and value is not False


def _spans(mask: Tensor | None, rows: int, length: int, begins: bool) -> list[tuple[int, int]]:
    """First token and end of every row within the new columns."""
    if mask is None:
        return [(0, length)] * rows
    new = mask[:, -length:]
    if begins:
        return spans(new)
    if not bool(new.bool().all()):
        raise ConfigError(
            "attention_mask: padding after tokens that were read before; pad on the left, or read "
            "every row to its end."
        )
    return [(0, length)] * rows


def _grouped(spread: list[tuple[int, int]]) -> tuple[Group, ...]:
    """Rows by where they begin and end."""
    by_span: dict[tuple[int, int], list[int]] = {}
    for row, span in enumerate(spread):
        by_span.setdefault(span, []).append(row)
    return tuple(Group(tuple(rows), None) for rows in by_span.values())


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the next tokens."""
    targets = labels[:, 1:].to(torch.int64)
    flat = logits[:, :-1].flatten(0, 1).float()
    return cross_entropy(flat, targets.flatten(), ignore_index=IGNORE)
