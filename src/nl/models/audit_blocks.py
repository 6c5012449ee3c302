"""Mechanisms of the sequence mixers, in the order a token meets them. Floor 3."""

from __future__ import annotations

from nl.models.mechanism import BLOCK, LAWS, LAYERS, OPS, Mechanism

ATTENTION = ("transformer", "hope_attention", "hope_hybrid")
TITANS = ("titan_lmm", "titan_mac", "titan_mag", "titan_mal", "hope_hybrid")
WINDOW = ("titan_mag", "titan_mal", "sliding_window")
DENSE = (
    "transformer",
    "gated_delta",
    "lstm",
    "gru",
    "quadratic_rnn",
    "titan_lmm",
    "titan_mac",
    "titan_mag",
    "titan_mal",
    "sliding_window",
)


def _in(*kinds: str) -> dict[str, tuple[str, ...]]:
    return {BLOCK: kinds}


BLOCKS: tuple[Mechanism, ...] = (
    Mechanism(
        part="causal attention",
        source="Vaswani et al. 2017, Eq. 1; rotary positions: arXiv 2104.09864",
        equation="o_t = sum_{i <= t} softmax_i(<R_t q_t, R_i k_i> / sqrt(K)) v_i",
        code="nl.ops.attention:causal_attention",
        tests=(
            f"{OPS}test_level_losses_attention.py::test_attention",
            f"{OPS}test_level_losses_attention.py::test_rotary",
            f"{LAWS}test_causal",
        ),
        where=_in(*ATTENTION),
        options=(
            "model.attention.heads",
            "model.attention.kv_heads",
            "model.attention.qk_norm",
            "model.attention.bias",
            "model.attention.rotary",
            "model.positions",
        ),
        differs="queries and keys are RMS-normalised; model.attention.qk_norm=false leaves them",
    ),
    Mechanism(
        part="feed-forward layer",
        source="SwiGLU, Shazeer 2020 (arXiv 2002.05202); GELU: arXiv 1606.08415",
        equation="swiglu: y = W_out (silu(W_gate x) * W_value x)\n"
        "gelu, gelu_tanh: y = W_out gelu(W_in x)",
        code="nl.nn.mlp:SwiGLU",
        tests=(f"{LAWS}test_every_parameter_learns",),
        where=_in(*DENSE),
        options=("model.mlp_hidden", "model.mlp", "model.bias", "model.parallel"),
        differs="as printed; with model.experts only in the first model.experts.first_dense blocks",
    ),
    Mechanism(
        part="gated delta rule",
        source="Gated Delta Networks (arXiv 2412.06464), the gated delta rule",
        equation="S_t = a_t S_{t-1} (I - b_t k_t k_t^T) + b_t v_t k_t^T,  o_t = S_t q_t",
        code="nl.ops.gated_delta:gated_delta",
        tests=(
            f"{OPS}test_gated_delta.py::test_equals_the_token_loop",
            f"{LAYERS}test_gated_delta_layer.py::test_equals_the_token_loop",
        ),
        where=_in("gated_delta"),
        options=("model.gated_delta.conv", "model.gated_delta.gate", "model.gated_delta.chunk"),
    ),
    Mechanism(
        part="long short-term memory",
        source="Hochreiter and Schmidhuber 1997, forget gate: Gers et al. 2000",
        equation="i, f, g, o = W x_t + b + U h_{t-1} + d\n"
        "c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g),  h_t = sigmoid(o) tanh(c_t)",
        code="nl.ops.recurrent:lstm",
        tests=(
            f"{OPS}test_recurrent.py::test_equals_the_token_loop",
            f"{LAYERS}test_recurrent_layer.py::test_the_cells_are_those_of_torch",
        ),
        where=_in("lstm"),
        options=("model.recurrent.hidden", "model.recurrent.forget_bias"),
    ),
    Mechanism(
        part="gated recurrent unit",
        source="Cho et al. 2014 (arXiv 1406.1078)",
        equation="r, z = sigmoid(W x_t + b + U h_{t-1} + d)\n"
        "n = tanh(W_n x_t + b_n + r (U_n h_{t-1} + d_n)),  h_t = (1 - z) n + z h_{t-1}",
        code="nl.ops.recurrent:gru",
        tests=(
            f"{OPS}test_recurrent.py::test_equals_the_token_loop",
            f"{LAYERS}test_recurrent_layer.py::test_the_cells_are_those_of_torch",
        ),
        where=_in("gru"),
        options=("model.recurrent.hidden",),
        differs="the reset gate acts behind the product, as in torch",
    ),
    Mechanism(
        part="quadratic recurrence",
        source="arXiv 2602.03655, the quadratic recurrent network",
        equation="z_t = (U h_{t-1} + W x_t)^2 or (U h_{t-1}) * (W x_t),  h_0 = 1\n"
        "h_t = z_t / sqrt(mean(z_t^2) + 1e-6)",
        code="nl.ops.recurrent:quadratic",
        tests=(
            f"{OPS}test_recurrent.py::test_equals_the_token_loop",
            f"{LAYERS}test_recurrent_layer.py::test_a_small_change_keeps_its_size",
            f"{LAWS}test_stable_over_a_long_stream",
        ),
        where=_in("quadratic_rnn"),
        options=("model.recurrent.hidden", "model.recurrent.transform"),
        differs="the hidden vector is brought to mean square 1 after every token: without a norm "
        "it squares its size per token; model=quadratic_rnn is the letter, for short words",
    ),
    Mechanism(
        part="Titans memory: write",
        source="Titans (arXiv 2501.00663), Eq. 13-14",
        equation="S_t = eta_t S_{t-1} - theta_t grad |M(k_t) - v_t|^2 / 2\n"
        "M_t = (1 - alpha_t) M_{t-1} + S_t, gradients at the chunk start",
        code="nl.ops.titans:titans_write",
        tests=(
            f"{OPS}test_titans.py::test_write_equals_the_token_loop",
            f"{OPS}test_titans_scan.py::test_equals_the_token_loop",
            f"{OPS}test_titans.py::test_gradcheck",
            f"{LAYERS}test_titan.py::test_equals_the_token_loop",
        ),
        where=_in(*TITANS),
        options=(
            "model.titan.period",
            "model.titan.depth",
            "model.titan.momentum",
            "model.titan.step",
            "model.titan.retention",
        ),
        differs="steps are divided by what a chunk's keys share and forgetting goes toward the "
        "initial memory; model.titan.step=plain and model.titan.retention=zero are the letter",
    ),
    Mechanism(
        part="Titans memory: read",
        source="Titans (arXiv 2501.00663): retrieval without a weight update",
        equation="y_t = M(q_t),  x_l = silu(W_l x_{l-1}) + x_{l-1},  M(q) = W_L x_{L-1}",
        code="nl.ops.titans:titans_read",
        tests=(
            f"{OPS}test_titans.py::test_read_and_factors_are_the_formula",
            f"{LAYERS}test_titan.py::test_frozen_reading_is_the_initial_memory",
        ),
        where=_in(*TITANS),
        options=(
            "model.titan.head_size",
            "model.titan.hidden",
            "model.titan.conv",
            "model.titan.gate",
        ),
        differs="a head per memory; the answer is normalised and projected, gated on demand",
    ),
    Mechanism(
        part="Titans memory as context",
        source="Titans (arXiv 2501.00663), section 4.1 (MAC)",
        equation="h_t = M(q_t), a_t = attention over [persistent, h_j, x_j], j <= t in a segment\n"
        "y_t = norm(x_t + a_t), o_t = W_o a_t * 2 sigmoid(W M(q'(y_t))); the segment's y_t are "
        "written when it is complete",
        code="nl.nn.titan_layouts:MemoryAsContext",
        tests=(
            f"{LAYERS}test_titan_layouts.py::test_context_equals_one_token_at_a_time",
            f"{LAYERS}test_titan_layouts.py::test_context_writes_once_per_segment_and_freezes",
        ),
        where=_in("titan_mac"),
        options=("model.titan.period", "model.titan.persistent"),
        differs="what is written and asked for the gate contains the token itself, not only what "
        "attention found; the gate asks the memory as it was when the segment began: asked after "
        "the write, as printed, it would show a token what follows it",
    ),
    Mechanism(
        part="Titans memory as gate",
        source="Titans (arXiv 2501.00663), section 4.2 (MAG)",
        equation="o_t = attention_window(x)_t * 2 sigmoid(memory(x)_t)",
        code="nl.nn.titan_layouts:MemoryAsGate",
        tests=(
            f"{LAYERS}test_titan_layouts.py::test_gate_is_attention_times_twice_the_sigmoid",
            f"{LAYERS}test_titan_layouts.py::test_a_fresh_gate_is_open",
        ),
        where=_in("titan_mag"),
        options=("model.titan.window", "model.titan.persistent"),
    ),
    Mechanism(
        part="Titans memory as layer",
        source="Titans (arXiv 2501.00663), section 4.3 (MAL)",
        equation="y = x + memory(x),  o = y + attention_window(y)",
        code="nl.models.blocks:TitanMALBlock",
        tests=(f"{LAWS}test_causal", f"{LAWS}test_split_invariant"),
        where=_in("titan_mal"),
        options=("model.titan.window", "model.titan.persistent"),
    ),
    Mechanism(
        part="sliding-window attention with persistent keys",
        source="Titans (arXiv 2501.00663), persistent memory and sliding windows",
        equation="o_t = sum_i softmax_i(<q_t, k_i> / sqrt(K)) v_i, i persistent or t - W < i <= t",
        code="nl.nn.window:WindowAttention",
        tests=(
            f"{OPS}test_window_attention.py::test_equals_one_query_at_a_time",
            f"{LAYERS}test_window.py::test_a_token_sees_its_window_and_no_more",
        ),
        where=_in(*WINDOW),
        options=("model.titan.window", "model.titan.persistent"),
    ),
    Mechanism(
        part="self-modifying memory: form",
        source="Nested Learning (NeurIPS 2025), Eq. 91",
        equation="M(x) = x + W1 phi(W2 x)",
        code="nl.ops.fast_mlp:fast_mlp",
        tests=(f"{OPS}test_fast_mlp.py::test_read_is_the_formula",),
        where=_in("hope_selfmod"),
        options=(
            "model.selfmod.hidden",
            "model.selfmod.gate_hidden",
            "model.selfmod.activation",
            "model.selfmod.skip",
        ),
        differs="the memory that is read out has no skip; model.selfmod.skip=true is the letter",
    ),
    Mechanism(
        part="self-modifying memory: own keys, values, rates, decays",
        source="Nested Learning (NeurIPS 2025), self-modifying Titans",
        equation="k = M_k(x)  v = M_v(x)  eta = M_eta(x)  alpha = M_alpha(x)  o = M_memory(q)",
        code="nl.nn.selfmod:SelfMod",
        tests=(
            f"{LAYERS}test_selfmod_exact.py::test_equals_the_token_loop",
            f"{LAYERS}test_selfmod_exact.py::test_equals_the_token_loop_at_any_period",
        ),
        where=_in("hope_selfmod"),
        options=(
            "model.selfmod.target",
            "model.selfmod.target_norm",
            "model.selfmod.adaptive_q",
            "model.selfmod.direct_gates",
            "model.selfmod.conv",
            "model.selfmod.compat",
        ),
        differs="static projections in front, also of the gates, unit-norm values, memory learns "
        "the value itself; "
        "model.selfmod.compat=literal has the letter",
    ),
    Mechanism(
        part="self-modifying memory: write",
        source="Nested Learning (NeurIPS 2025), Eq. 57 (delta gradient descent)",
        equation="W <- W (alpha_t I - eta_t k_t k_t^T) - eta_t g_t k_t^T, per token of a chunk",
        code="nl.ops.fast_write:fast_mlp_write",
        tests=(
            f"{OPS}test_fast_write.py::test_write_equals_the_token_loop",
            f"{OPS}test_delta_rule.py::test_equals_the_token_loop",
            f"{LAYERS}test_selfmod.py::test_sixty_five_thousand_tokens_stay_bounded",
        ),
        where=_in("hope_selfmod"),
        options=(
            "model.selfmod.period",
            "model.selfmod.period_other",
            "model.selfmod.objective",
            "model.selfmod.output_rule",
            "model.selfmod.retention",
            "model.selfmod.clip",
        ),
        differs="decay toward the initial memory, the delta rule on both layers with the running "
        "error, no large steps of the first; model.selfmod.retention=zero with "
        "model.selfmod.output_rule=decay and model.selfmod.clip=0 is the letter",
    ),
)
