"""Mechanisms of the continuum memory and its inner optimizers. Floor 3."""

from __future__ import annotations

from nl.models.mechanism import BLOCK, LAWS, LAYERS, OPS, Mechanism

LEVELS = ("hope_attention", "hope_selfmod", "hope_hybrid")


def _inner(kind: str) -> dict[str, tuple[str, ...]]:
    return {BLOCK: LEVELS, "model.cms.inner.kind": (kind,)}


SHAPE = tuple(
    f"model.cms.{name}"
    for name in ("periods", "hidden", "arrangement", "activation", "norm", "bias")
)
"""Options that say what the levels are."""

CONTINUUM: tuple[Mechanism, ...] = (
    Mechanism(
        part="continuum memory: chain",
        source="Nested Learning (NeurIPS 2025), Eq. 70",
        equation="y = MLP_k(... MLP_1(x)),  MLP_l(x) = x + phi(n U_l^T) V_l^T,  n = norm(x)",
        code="nl.ops.level:level_read",
        tests=(
            f"{LAYERS}test_cms.py::test_equals_the_token_loop",
            f"{LAYERS}test_cms_options.py::test_equals_the_token_loop",
        ),
        where={BLOCK: LEVELS, "model.cms.arrangement": ("sequential", "nested")},
        options=SHAPE,
    ),
    Mechanism(
        part="continuum memory: nested levels",
        source="Nested Learning, continuum memory system: nested variant",
        equation="fast_l <- fast_{l+1} whenever level l+1 is written; between, fast_l decays to it",
        code="nl.nn.level:restart",
        tests=(
            f"{LAYERS}test_cms_options.py::test_equals_the_token_loop",
            f"{LAYERS}test_cms_options.py::test_a_nested_level_starts_from_the_slower_one_again",
        ),
        where={BLOCK: LEVELS, "model.cms.arrangement": ("nested",)},
        options=("model.cms.arrangement",),
        differs="every level keeps meta weights of its own (equal at first) and restarts with the "
        "writes of the slower one on top, instead of with its whole weights",
    ),
    Mechanism(
        part="continuum memory: independent levels",
        source="Nested Learning, continuum memory system: independent (head-wise) variant",
        equation="y = x + sum_l gain_l MLP_l(x),  MLP_l(x) = phi(n U_l^T) V_l^T,  n = norm(x)\n"
        "signal of level l: gain_l dL/dy",
        code="nl.nn.cms:ContinuumMemory.forward",
        tests=(f"{LAYERS}test_cms_options.py::test_equals_the_token_loop",),
        where={BLOCK: LEVELS, "model.cms.arrangement": ("independent",)},
        options=SHAPE,
        differs="the aggregation is a sum with one learned gain per level",
    ),
    Mechanism(
        part="continuum memory: other MLPs as levels",
        source="Nested Learning, ad-hoc level stacking: levels that begin as trained MLPs",
        equation="n = norm(x), a = phi(n U^T + b), MLP(x) = a V^T + c; "
        "sum_l MLP_l = MLP when the hidden units of a trained MLP are shared out",
        code="nl.ops.level:level_branch",
        tests=(
            f"{OPS}test_level_losses_attention.py::test_level_branch_of_other_forms",
            f"{OPS}test_level_losses_attention.py::test_level_write_gradients",
            "tests/unit/hf/test_foreign.py::test_mlps_become_levels",
        ),
        where={
            BLOCK: LEVELS,
            "model.cms.activation": ("swiglu", "gelu", "gelu_tanh"),
        },
        options=(
            "model.cms.activation",
            "model.cms.norm",
            "model.cms.norm_eps",
            "model.cms.bias",
        ),
        differs="one MLP is shared out among the levels of its block, instead of one level per "
        "MLP of several blocks; biases are not written",
    ),
    Mechanism(
        part="continuum memory: write",
        source="Nested Learning (NeurIPS 2025), Eq. 71",
        equation="every C_l tokens: theta_l <- theta_l - eta_l sum_{t in period} dL_t/dtheta_l",
        code="nl.nn.cms:ContinuumMemory.absorb",
        tests=(
            f"{LAYERS}test_cms.py::test_equals_the_token_loop",
            f"{OPS}test_level_losses_attention.py::test_level_write_gradients",
            f"{LAWS}test_counted_writes_of_levels",
            f"{LAWS}test_zero_signal_changes_nothing",
            "tests/laws/test_long_streams.py::test_rounding_does_not_grow_along_a_stream",
        ),
        where={BLOCK: LEVELS},
        options=("model.cms.rate", "model.cms.retention", "model.cms.clip"),
        differs="a write also decays the memory and its norm is bounded; model.cms.retention=1 "
        "with model.cms.clip=0 is the letter; eta_l is learned and starts from "
        "rate * min(1, dim / (4 C_l)), with momentum (1 - beta) of it, so that long periods do not "
        "overshoot",
    ),
    Mechanism(
        part="continuum memory: signal",
        source="Nested Learning (NeurIPS 2025), Eq. 71: the loss of the outer level",
        equation="dL/dh = (softmax(logits) - onehot(label)) W_head, pulled back level by level",
        code="nl.ops.losses:teach_signal",
        tests=(
            f"{OPS}test_level_losses_attention.py::test_linear_cross_entropy",
            f"{LAWS}test_a_label_acts_after_its_chunk_only",
        ),
        where={BLOCK: LEVELS, "model.cms.signal": ("head",)},
        options=("objective.write", "model.cms.signal"),
        differs="the signal of the final hidden state serves every block; per token, never "
        "divided by batch or chunk size",
    ),
    Mechanism(
        part="continuum memory: signal of each block",
        source="Nested Learning, Eq. 71, with the output of a block for the layer's own context",
        equation="d_t = d(sum of nll over the tile of t) / d(output of the block at t),\n"
        "pulled back level by level",
        code="nl.models.block_signal:gather",
        tests=(
            "tests/unit/models/test_block_signal.py::test_is_the_derivative_of_the_tiles_loss",
            "tests/unit/models/test_block_signal.py::"
            "test_the_graph_of_a_step_and_a_second_read_agree",
        ),
        where={BLOCK: LEVELS, "model.cms.signal": ("block",)},
        options=("model.cms.signal",),
        differs="what a token does to the loss of later tiles is left out",
    ),
    Mechanism(
        part="continuum memory: signal without labels",
        source="Titans (arXiv 2501.00663), Eq. 12, as the loss of every level",
        equation="L_t = |MLP_l(W_k n_t) - W_v n_t|^2 / 2,  dL_t/dMLP = MLP_l(W_k n_t) - W_v n_t",
        code="nl.nn.level:Level.recall",
        tests=(
            f"{LAYERS}test_cms_options.py::test_equals_the_token_loop",
            f"{LAYERS}test_cms_options.py::test_a_level_with_its_own_loss_learns_it",
        ),
        where={BLOCK: LEVELS, "model.cms.signal": ("self",)},
        options=("model.cms.signal",),
        differs="queries are not projected; keys begin as the input itself",
    ),
    Mechanism(
        part="continuum memory: gradients through writes",
        source="Nested Learning: the outer level differentiates the inner one",
        equation="dL/dparameters through fast_l, its summed gradients and their signals; cut at "
        "every bptt_chunks-th write",
        code="nl.nn.cms:ContinuumMemory.absorb",
        tests=(
            f"{LAYERS}test_cms_options.py::test_equals_the_token_loop",
            f"{LAYERS}test_cms_options.py::test_finite_differences_agree_through_writes",
            f"{LAYERS}test_cms_options.py::test_what_is_cut_off_gets_no_gradient",
            f"{OPS}test_level_losses_attention.py::test_differentiable_cross_entropy",
        ),
        where={BLOCK: LEVELS, "model.cms.write_gradient": ("through",)},
        options=("model.cms.write_gradient", "model.cms.bptt_chunks"),
    ),
    Mechanism(
        part="continuum memory: one memory for the batch",
        source="Nested Learning, Eq. 71, with the sum over the tokens of all rows and ranks",
        equation="theta_l <- theta_l - eta_l sum_{rows} sum_{t in period} dL_t/dtheta_l",
        code="nl.nn.level:LevelTokens.pooled",
        tests=(
            f"{LAYERS}test_cms_options.py::test_equals_the_token_loop",
            f"{LAYERS}test_cms_options.py::"
            "test_a_shared_memory_is_held_once_and_reduced_when_written",
            "tests/unit/dist/test_strategies.py::test_two_ranks_share_one_memory",
        ),
        where={BLOCK: LEVELS, "model.cms.scope": ("batch",)},
        options=("model.cms.scope",),
        differs="rows see each other; a memory per row (model.cms.scope=row) is the default",
    ),
    Mechanism(
        part="continuum memory: surprise gate",
        source="Titans (arXiv 2501.00663): surprising tokens are the memorable ones",
        equation="token t writes if |dL/dh_t| >= threshold (hard), weighed around it (soft)",
        code="nl.nn.surprise:surprise_gate",
        tests=(
            f"{LAYERS}test_surprise.py::test_equals_a_loop_over_tokens",
            f"{LAYERS}test_surprise.py::test_a_running_threshold_finds_its_quantile",
        ),
        where={BLOCK: LEVELS, "model.cms.surprise.gate": ("hard", "soft")},
        options=("model.cms.surprise.threshold", "model.cms.surprise.quantile"),
        differs="a gate on top of the surprise that every write is proportional to",
    ),
    Mechanism(
        part="inner optimizer sgd",
        source="Nested Learning (NeurIPS 2025), Eq. 71",
        equation="D <- retention D + sum_t g_t",
        code="nl.nn.inner:SGD",
        tests=(f"{LAYERS}test_inner.py::test_level_equals_a_loop_over_tokens",),
        where=_inner("sgd"),
    ),
    Mechanism(
        part="inner optimizer momentum",
        source="Nested Learning (NeurIPS 2025), deep optimizers: momentum as a memory",
        equation="m <- beta m + g,  D <- retention D + m",
        code="nl.nn.inner:Momentum",
        tests=(f"{LAYERS}test_inner.py::test_level_equals_a_loop_over_tokens",),
        where=_inner("momentum"),
        options=("model.cms.inner.beta",),
    ),
    Mechanism(
        part="inner optimizer delta",
        source="Nested Learning (NeurIPS 2025), Eq. 57",
        equation="W <- W (I - r x x^T) - r g x^T,  r = eta / (1 + eta), unit x",
        code="nl.nn.inner:Delta",
        tests=(
            f"{LAYERS}test_inner.py::test_delta_equals_a_loop_over_tokens",
            f"{LAYERS}test_inner.py::test_delta_is_contractive_where_sgd_is_not",
        ),
        where=_inner("delta"),
    ),
    Mechanism(
        part="inner optimizer adam",
        source="Kingma and Ba 2015, Algorithm 1",
        equation="D <- retention D + size m / (sqrt(v) + eps), bias-corrected moments",
        code="nl.nn.inner:Adam",
        tests=(f"{LAYERS}test_inner.py::test_level_equals_a_loop_over_tokens",),
        where=_inner("adam"),
        options=("model.cms.inner.beta1", "model.cms.inner.beta2", "model.cms.inner.size"),
    ),
    Mechanism(
        part="inner optimizer muon",
        source="Jordan et al. 2024 (Muon)",
        equation="m <- beta m + g,  D <- retention D + size NS5(m)",
        code="nl.nn.inner:Muon",
        tests=(
            f"{LAYERS}test_inner.py::test_level_equals_a_loop_over_tokens",
            f"{OPS}test_orthogonal.py::test_the_iteration_is_a_polynomial_of_the_singular_values",
        ),
        where=_inner("muon"),
        options=("model.cms.inner.beta", "model.cms.inner.size"),
    ),
    Mechanism(
        part="inner optimizer deep",
        source="Nested Learning (NeurIPS 2025), deep optimizers: deep momentum gradient descent",
        equation="m(x) = W1 silu(W2 x) / sqrt(H),  L = mean |m(x) - x|^2 / 2 over the rows x of g\n"
        "W <- a W - r dL/dW,  D <- retention D + size m(x) / rms(m(x))",
        code="nl.nn.inner:Deep",
        tests=(
            f"{LAYERS}test_inner.py::test_level_equals_a_loop_over_tokens",
            f"{LAYERS}test_inner.py::test_deep_momentum_recalls_the_direction_it_has_seen",
        ),
        where=_inner("deep"),
        options=("model.cms.inner.hidden", "model.cms.inner.retention", "model.cms.inner.rate"),
        differs="the first layer decays toward its fixed start, gradients and steps are brought to "
        "a size of their own",
    ),
)
