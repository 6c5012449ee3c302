"""Mechanisms of sparse experts. Floor 3."""

from __future__ import annotations

from nl.models.audit_blocks import DENSE
from nl.models.mechanism import BLOCK, LAYERS, OPS, Mechanism

FORM = "model.experts.form"
ROUTER = "model.experts.router"
LEVELS = ("hope_attention", "hope_selfmod", "hope_hybrid")
ANY = DENSE + LEVELS
SPARSE = {BLOCK: ANY, FORM: ("low_rank", "swiglu")}
UNIT = f"{LAYERS}test_experts.py::"
ROUTING = f"{OPS}test_routing.py::"
EXPERT_LAWS = "tests/laws/test_expert_laws.py::"


def _router(kind: str) -> dict[str, tuple[str, ...]]:
    return {**SPARSE, ROUTER: (kind,)}


EXPERTS: tuple[Mechanism, ...] = (
    Mechanism(
        part="sparse experts",
        source="Shazeer et al. 2017 (arXiv 1701.06538), Eq. 1; dropless: MegaBlocks (2211.15841); "
        "shared experts: DeepSeekMoE (2401.06066)",
        equation="y = sum_j g_j E_{i_j}(x) + E_shared(x),  E_e(x) = phi(x U_e) V_e",
        code="nl.ops.experts:sparse_experts",
        tests=(
            f"{OPS}test_experts.py::test_every_form_equals_the_gathered_weights",
            f"{OPS}test_experts.py::test_gradcheck",
            f"{EXPERT_LAWS}test_split_invariant",
            f"{EXPERT_LAWS}test_row_independent",
        ),
        where={BLOCK: DENSE, FORM: ("low_rank", "swiglu")},
        options=(
            FORM,
            "model.experts.count",
            "model.experts.rank",
            "model.experts.width",
            "model.experts.activation",
            "model.experts.shared",
            "model.experts.first_dense",
        ),
        differs="no capacity: no token is dropped and no row sees another",
    ),
    Mechanism(
        part="sparse experts: choice and weight",
        source="Shazeer et al. 2017 (arXiv 1701.06538), Eq. 3-5; Switch (arXiv 2101.03961), Eq. 1",
        equation="i = the k largest of l / temperature + noise eps + bias,  g_j = scale p(i_j)",
        code="nl.ops.routing:choose_experts",
        tests=(
            f"{ROUTING}test_choices_and_gates_are_those_of_the_loop",
            f"{UNIT}test_a_gradient_reaches_every_router_parameter",
            f"{UNIT}test_the_better_arm_of_a_bandit_is_found",
            f"{ROUTING}test_keyed_numbers_are_normal_and_functions_of_their_key",
        ),
        where=SPARSE,
        options=(
            ROUTER,
            "model.experts.k",
            "model.experts.k_max",
            "model.experts.gate",
            "model.experts.scale",
            "model.experts.temperature",
            "model.experts.noise",
        ),
        differs="gate=normalised divides p by the sum of the chosen as by a constant, so that one "
        "expert alone has a gradient; noise is keyed by step, token and position",
    ),
    Mechanism(
        part="continuum memory: experts",
        source="Nested Learning (NeurIPS 2025), Eq. 70-71, with the experts of arXiv 1701.06538 "
        "for the hidden units of a level",
        equation="y = x + (g_t phi(z)) V^T,  dV = sum d^T (g phi(z)),  e = g (d V) phi'(z): a "
        "token reads and writes its experts",
        code="nl.nn.level:Level.read",
        tests=(
            f"{OPS}test_level_losses_attention.py::test_level_branch_of_gated_units",
            f"{OPS}test_level_losses_attention.py::test_writes_of_gated_units_are_gradients",
            f"{EXPERT_LAWS}test_levels_with_experts_obey_the_laws",
            f"{EXPERT_LAWS}test_only_the_experts_that_read_are_written",
        ),
        where={BLOCK: LEVELS, FORM: ("low_rank", "swiglu")},
        options=("model.experts.count", "model.experts.rank", "model.experts.k"),
        differs="not in the paper; all hidden units are computed, others than a token's times zero",
    ),
    Mechanism(
        part="router group_limited",
        source="DeepSeek-V3 (arXiv 2412.19437), section 2.1.2",
        equation="only experts of the n groups with the largest logsumexp of their two best",
        code="nl.ops.routing:limit_groups",
        tests=(f"{ROUTING}test_only_the_best_groups_are_left",),
        where=_router("group_limited"),
        options=("model.experts.groups", "model.experts.group_limit"),
        differs="the paper adds up sigmoids",
    ),
    Mechanism(
        part="router hierarchical",
        source="Jordan and Jacobs 1994, hierarchical mixtures of experts; Shazeer et al. 2017, "
        "appendix B",
        equation="p(e) = p(group(e)) p(e | group(e))",
        code="nl.nn.router:Router",
        tests=(f"{UNIT}test_a_gradient_reaches_every_router_parameter",),
        where=_router("hierarchical"),
        options=("model.experts.groups", "model.experts.group_limit"),
    ),
    Mechanism(
        part="router product_key",
        source="Lample et al. 2019 (arXiv 1907.05242), Eq. 4-5; PEER (arXiv 2407.04153)",
        equation="l(i S + j) = <q_1, k_i> + <q_2, k'_j>",
        code="nl.ops.routing:choose_pairs",
        tests=(f"{ROUTING}test_product_keys_find_the_best_sums",),
        where=_router("product_key"),
        options=("model.experts.key_size",),
        differs="queries are not batch-normalised, one head",
    ),
    Mechanism(
        part="sparse experts: balance",
        source="bias: arXiv 2408.15664; switch loss: arXiv 2101.03961, Eq. 4, row by row: arXiv "
        "2412.19437, Eq. 17; z loss: arXiv 2202.08906, Eq. 5",
        equation="b_e <- b_e + balance sign(mean load - load_e), de-meaned\n"
        "L += switch_loss E sum_e f_e P_e + z_loss mean logsumexp(l)^2, per token",
        code="nl.nn.router:Router.rebalance",
        tests=(
            f"{UNIT}test_the_bias_moves_by_the_sign_and_changes_the_choice_only",
            f"{ROUTING}test_losses_and_counts_by_hand",
            f"{UNIT}test_training_counts_and_evaluation_does_not",
        ),
        where=SPARSE,
        options=(
            "model.experts.balance",
            "model.experts.switch_loss",
            "model.experts.z_loss",
        ),
    ),
)
