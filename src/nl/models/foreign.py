"""Weights of other decoders under our names: Llama, GPT-NeoX (Pythia) and GPT-2. Floor 3.

What a family has that our Transformer does not is refused by the key of its config.json: equal
logits or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from nl.config import ConfigError
from nl.models.language import LanguageConfig
from nl.nn.attention import AttentionConfig
from nl.nn.mlp import MLPKind

Tensors = dict[str, Tensor]
Given = Mapping[str, Any]

ACTIVATIONS: dict[str, MLPKind] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def convert(config: Given, tensors: Tensors) -> tuple[LanguageConfig, Tensors]:
    """A checkpoint of Hugging Face's layout as our configuration and tensors.

    Args:
        config: the contents of config.json.
        tensors: by their names there; buffers are left out.

    Returns:
        The configuration (block transformer) and the tensors it builds.

    Raises:
        ConfigError: another family, an option that has no counterpart, a tensor that is missing or
            left over.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ConfigError(f"config.json: model_type {family!r}; these can be read: {known}.")
    given = _Taken(tensors)
    made = FAMILIES[family](config, given)
    given.check()
    return made


class _Taken:
    """The tensors of a checkpoint, each to be taken once."""

    def __init__(self, tensors: Tensors) -> None:
        self.left = dict(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self.left

    def __call__(self, name: str) -> Tensor:
        if name not in self.left:
            raise ConfigError(f"{name}: not in the checkpoint; is it whole?")
        return self.left.pop(name)

    def affine(self, ours: str, theirs: str, bias: bool = True) -> Tensors:
        """Weight and bias of one layer."""
        kinds = ("weight", "bias") if bias else ("weight",)
        return {f"{ours}.{kind}": self(f"{theirs}.{kind}") for kind in kinds}

    def check(self) -> None:
        """Refuse what nothing asked for; tables of positions and masks are no weights."""
        buffers = ("rotary_emb.inv_freq", "attn.bias", "masked_bias", "attention.bias")
        left = [name for name in self.left if not name.endswith(buffers)]
        if left:
            raise ConfigError(f"{left[0]}: has no counterpart here ({len(left)} such tensors).")


def _need(config: Given, key: str, allowed: tuple[Any, ...], default: Any) -> Any:
    """A value of config.json, refused where it is none of those that mean what ours does."""
    value = config.get(key, default)
    if value not in allowed:
        words = ", ".join(map(str, allowed))
        raise ConfigError(f"config.json: {key} is {value!r}; only {words} can be read.")
    return value


def _rope(config: Given, base: str) -> tuple[float, float]:
    """Base of the wavelengths and share of a head that turns; ``base`` is the older key."""
    new = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = new.get("rope_type", new.get("type", "default"))
    if kind != "default":
        raise ConfigError(f"config.json: rope_type is {kind!r}; only default can be read.")
    theta: Any = new.get("rope_theta", config.get(base, 10000.0))
    share: Any = new.get("partial_rotary_factor", config.get("rotary_pct", 1.0))
    return float(theta), float(share)


def _activation(name: Any) -> MLPKind:
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ConfigError(f"config.json: activation {name!r}; these can be read: {known}.")
    return ACTIVATIONS[name]


def _head(config: Given, given: _Taken, table: Tensor, *, tied: bool = False) -> Tensor:
    """The head; a copy of the table where they are one, for ours would scale a shared one.

    ``tied`` is what the family means where its config.json does not say.
    """
    names = ("lm_head.weight", "embed_out.weight")
    own = next((given(name) for name in names if name in given), None)
    if config.get("tie_word_embeddings", tied):
        return table.clone()  # a head that is stored beside it is not read by theirs either
    if own is None:
        raise ConfigError(
            f"{names[0]}: not in the checkpoint, and tie_word_embeddings is false; is it whole?"
        )
    return own


def _llama(config: Given, given: _Taken) -> tuple[LanguageConfig, Tensors]:
    """Llama (Touvron et al. 2023): RMSNorm, rotary positions, shared key heads, SwiGLU."""
    _need(config, "hidden_act", ("silu",), "silu")
    dim, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    _need(config, "head_dim", (None, dim // heads), None)
    attention_bias, bias = (bool(config.get(k, False)) for k in ("attention_bias", "mlp_bias"))
    theta, share = _rope(config, "rope_theta")
    model = LanguageConfig(
        vocab_size=int(config["vocab_size"]),
        dim=dim,
        layers=int(config["num_hidden_layers"]),
        block="transformer",
        mlp_hidden=int(config["intermediate_size"]),
        bias=bias,
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        rope_base=theta,
        attention=AttentionConfig(
            heads=heads,
            kv_heads=config.get("num_key_value_heads"),
            qk_norm=False,
            bias=attention_bias,
            rotary=share,
        ),
    )
    table = given("model.embed_tokens.weight")
    made = {"embed.weight": table, "norm.weight": given("model.norm.weight")}
    made["head.weight"] = _head(config, given, table)
    for i in range(model.layers):
        theirs, ours = f"model.layers.{i}", f"blocks.{i}"
        own = f"{theirs}.self_attn"
        for kind in ("weight", "bias") if attention_bias else ("weight",):
            parts = [given(f"{own}.{name}_proj.{kind}") for name in "qkv"]
            made[f"{ours}.mixers.0.qkv.{kind}"] = torch.cat(parts)
        made |= given.affine(f"{ours}.mixers.0.out", f"{own}.o_proj", attention_bias)
        for kind in ("weight", "bias") if bias else ("weight",):
            both = [given(f"{theirs}.mlp.{name}_proj.{kind}") for name in ("gate", "up")]
            made[f"{ours}.mlp.into.{kind}"] = torch.cat(both)
        made |= given.affine(f"{ours}.mlp.out", f"{theirs}.mlp.down_proj", bias)
        made |= given.affine(f"{ours}.norms.0", f"{theirs}.input_layernorm", False)
        made |= given.affine(f"{ours}.mlp_norm", f"{theirs}.post_attention_layernorm", False)
    return model, made


def _gpt_neox(config: Given, given: _Taken) -> tuple[LanguageConfig, Tensors]:
    """GPT-NeoX (Black et al. 2022), Pythia: LayerNorm, partial rotation, parallel branches."""
    _need(config, "attention_bias", (True,), True)
    dim, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    theta, share = _rope(config, "rotary_emb_base")
    if "rotary_pct" not in config and not config.get("rope_parameters"):
        share = 0.25
    model = LanguageConfig(
        vocab_size=int(config["vocab_size"]),
        dim=dim,
        layers=int(config["num_hidden_layers"]),
        block="transformer",
        mlp_hidden=int(config["intermediate_size"]),
        mlp=_activation(config.get("hidden_act", "gelu")),
        bias=True,
        parallel=bool(config.get("use_parallel_residual", True)),
        norm="layer",
        norm_eps=float(config.get("layer_norm_eps", 1e-5)),
        rope_base=theta,
        attention=AttentionConfig(heads=heads, qk_norm=False, bias=True, rotary=share),
    )
    table = given("gpt_neox.embed_in.weight")
    made = {"embed.weight": table} | given.affine("norm", "gpt_neox.final_layer_norm")
    made["head.weight"] = _head(config, given, table)
    for i in range(model.layers):
        theirs, ours = f"gpt_neox.layers.{i}", f"blocks.{i}"
        for kind in ("weight", "bias"):
            mixed = given(f"{theirs}.attention.query_key_value.{kind}")
            # Head by head its query, key and value; ours are all queries, all keys, all values.
            split = mixed.unflatten(0, (heads, 3, dim // heads)).transpose(0, 1)
            made[f"{ours}.mixers.0.qkv.{kind}"] = split.flatten(0, 2).contiguous()
        made |= given.affine(f"{ours}.mixers.0.out", f"{theirs}.attention.dense")
        made |= given.affine(f"{ours}.mlp.into", f"{theirs}.mlp.dense_h_to_4h")
        made |= given.affine(f"{ours}.mlp.out", f"{theirs}.mlp.dense_4h_to_h")
        made |= given.affine(f"{ours}.norms.0", f"{theirs}.input_layernorm")
        made |= given.affine(f"{ours}.mlp_norm", f"{theirs}.post_attention_layernorm")
    return model, made


def _gpt2(config: Given, given: _Taken) -> tuple[LanguageConfig, Tensors]:
    """GPT-2 (Radford et al. 2019): LayerNorm, learned positions, tied head."""
    _need(config, "scale_attn_weights", (True,), True)
    _need(config, "scale_attn_by_inverse_layer_idx", (False,), False)
    _need(config, "add_cross_attention", (False,), False)
    dim, heads = int(config["n_embd"]), int(config["n_head"])
    model = LanguageConfig(
        vocab_size=int(config["vocab_size"]),
        dim=dim,
        layers=int(config["n_layer"]),
        block="transformer",
        mlp_hidden=int(config.get("n_inner") or 4 * dim),
        mlp=_activation(config.get("activation_function", "gelu_new")),
        bias=True,
        norm="layer",
        norm_eps=float(config.get("layer_norm_epsilon", 1e-5)),
        positions="learned",
        max_positions=int(config["n_positions"]),
        attention=AttentionConfig(heads=heads, qk_norm=False, bias=True),
    )
    front = "transformer." if "transformer.wte.weight" in given else ""
    table = given(f"{front}wte.weight")
    made = {"embed.weight": table, "places.weight": given(f"{front}wpe.weight")}
    made |= given.affine("norm", f"{front}ln_f")
    made["head.weight"] = _head(config, given, table, tied=True)
    pairs = {
        "mixers.0.qkv": "attn.c_attn",
        "mixers.0.out": "attn.c_proj",
        "mlp.into": "mlp.c_fc",
        "mlp.out": "mlp.c_proj",
    }
    for i in range(model.layers):
        for ours, theirs in pairs.items():
            found = given.affine(f"blocks.{i}.{ours}", f"{front}h.{i}.{theirs}")
            weight = f"blocks.{i}.{ours}.weight"
            found[weight] = found[weight].T.contiguous()  # theirs is (in, out)
            made |= found
        made |= given.affine(f"blocks.{i}.norms.0", f"{front}h.{i}.ln_1")
        made |= given.affine(f"blocks.{i}.mlp_norm", f"{front}h.{i}.ln_2")
    return model, made


FAMILIES: dict[str, Callable[[Given, _Taken], tuple[LanguageConfig, Tensors]]] = {
    "llama": _llama,
    "gpt_neox": _gpt_neox,
    "gpt2": _gpt2,
}
