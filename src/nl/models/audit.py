"""Which equation of which paper each part implements, and the tests that prove it. Floor 3.

One row per mechanism. ``nl audit`` prints the rows that a run uses with the options it chose;
``docs/paper_compliance.md`` is written from the same table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nl.models.audit_blocks import BLOCKS
from nl.models.audit_experts import EXPERTS
from nl.models.audit_levels import CONTINUUM
from nl.models.mechanism import BLOCK, LAWS, OPS, POSITIVE, Mechanism

OPTIM = "tests/unit/optim/test_matrix_optimizers.py::"
POLICY = "tests/unit/optim/test_roles_and_policy.py::"


def _optim(kind: str) -> dict[str, tuple[str, ...]]:
    return {"optim.kind": (kind,)}


DOCUMENTS = "tests/laws/test_document_laws.py::"
HEADS = "tests/laws/test_head_laws.py::"

OUTER: tuple[Mechanism, ...] = (
    Mechanism(
        part="streaming",
        source="laws 1 to 5 of docs/nested_core.md",
        equation="f(x[0:T]) = f(x[0:s]) then f(x[s:T]) from its state, for every cut s",
        code="nl.models.language:LanguageModel.forward",
        tests=(
            f"{LAWS}test_split_invariant",
            f"{LAWS}test_split_invariant_gradients",
            f"{LAWS}test_row_independent",
            f"{LAWS}test_same_function_in_train_and_eval",
        ),
        where={BLOCK: tuple(sorted({k for m in BLOCKS + CONTINUUM for k in m.where[BLOCK]}))},
        options=("train.carry", "stream.order"),
    ),
    Mechanism(
        part="documents in one row",
        source="law 9 of docs/nested_core.md",
        equation="reading a document at position p = reading it from init_state(position=p)",
        code="nl.models.language:LanguageModel.reset_rows",
        tests=(
            f"{DOCUMENTS}test_a_document_is_read_as_from_a_fresh_state",
            f"{DOCUMENTS}test_nothing_of_a_document_reaches_the_next",
            f"{DOCUMENTS}test_packed_documents_are_trained_as_separate_ones",
            f"{DOCUMENTS}test_documents_are_independent_of_the_cut",
        ),
        where={BLOCK: tuple(sorted({k for m in BLOCKS + CONTINUUM for k in m.where[BLOCK]}))},
        options=("stream.documents",),
    ),
    Mechanism(
        part="head memory",
        source="Nested Learning (NeurIPS 2025), Eq. 71 for the layer that gives the logits",
        equation="logits = W h - rate (S h),  S <- retention S + sum over a period of r k^T\n"
        "r = softmax(logits) - onehot,  k = h / D,  "
        "rate = limit sigmoid(log_rate + c W toward - log limit) per word",
        code="nl.ops.head_memory:head_cross_entropy",
        tests=(
            f"{OPS}test_head_memory.py::test_chunks_are_the_token_loop",
            f"{OPS}test_head_memory.py::test_logits_are_the_token_loop_and_what_the_loss_is_of",
            f"{HEADS}test_split_invariant",
            f"{HEADS}test_gradients_are_those_of_the_logits",
            f"{HEADS}test_rows_and_documents_are_apart",
        ),
        where={"model.head_memory.period": POSITIVE},
        options=tuple(
            f"model.head_memory.{name}" for name in ("period", "rate", "limit", "retention")
        ),
        differs="the paper's levels are MLPs; this one is the head, and the rate of a word is a "
        "learned function of its row",
    ),
    Mechanism(
        part="outer optimizer adamw",
        source="AdamW (arXiv 1711.05101), Algorithm 2",
        equation="W <- (1 - lr wd) W - lr m / (sqrt(v) + eps), bias-corrected moments",
        code="nl.optim.adamw:AdamWSettings.over",
        tests=("tests/unit/optim/test_adamw.py::test_the_update_is_adamw",),
        where=_optim("adamw"),
        options=("optim.lr", "optim.betas", "optim.weight_decay"),
    ),
    Mechanism(
        part="outer optimizer muon",
        source="Jordan et al. 2024 (Muon); size of the update: arXiv 2502.16982",
        equation="B <- mu B + (1 - mu) G,  W <- (1 - lr wd) W - lr s NS5(G + mu (B - G))",
        code="nl.optim.muon:MuonConfig.over",
        tests=(
            f"{OPTIM}test_muon_is_orthogonalised_momentum",
            f"{OPS}test_orthogonal.py::test_five_quintic_steps_bring_every_singular_value_near_one",
            f"{POLICY}test_a_resume_continues_bitwise",
        ),
        where=_optim("muon"),
        options=("optim.momentum", "optim.nesterov", "optim.steps", "optim.adjust"),
    ),
    Mechanism(
        part="outer optimizer m3",
        source="Nested Learning (NeurIPS 2025), Algorithm 1 (M3)",
        equation="W <- W - lr s (NS(M1) + alpha NS(M2)) / root(V), M2 moves every slow_chunk steps",
        code="nl.optim.m3:M3",
        tests=(
            f"{OPTIM}test_m3_decayed",
            f"{OPTIM}test_m3_as_printed",
            f"{POLICY}test_a_resume_continues_bitwise",
        ),
        where=_optim("m3"),
        options=("optim.betas", "optim.alpha", "optim.slow_chunk", "optim.literal"),
        differs="moments decay, V is relative to its mean, NS is the quintic; optim.literal=true "
        "is the letter",
    ),
    Mechanism(
        part="outer optimizer dmgd",
        source="Nested Learning (NeurIPS 2025), deep optimizers: deep momentum gradient descent",
        equation="W <- W + m_{t+1}(u_t),  m_{t+1} = alpha m_t - eta grad L(m_t; u_t),  u_t = dL/dW",
        code="nl.optim.deep_momentum:DeepMomentum",
        tests=(
            f"{OPTIM}test_deep_momentum_is_gradient_descent_on_its_inner_loss",
            f"{OPTIM}test_a_small_regression_is_learned",
        ),
        where=_optim("dmgd"),
        options=("optim.hidden", "optim.retention", "optim.objective", "optim.output"),
        differs="the memory is an MLP over the gradient's rows, its first layer decays toward its "
        "initial value, gradients and updates are brought to unit size",
    ),
    Mechanism(
        part="outer optimizer scaled_sgd",
        source="SGD scaled per neuron for homogeneous networks",
        equation="theta_i <- theta_i - lr |theta_i|^exponent grad_i",
        code="nl.optim.scaled_sgd:ScaledSGD",
        tests=(f"{OPTIM}test_scaled_sgd_follows_the_norm_of_each_neuron",),
        where=_optim("scaled_sgd"),
        options=("optim.lr", "optim.exponent"),
    ),
    Mechanism(
        part="outer optimizer frozen_backbone",
        source="Nested Learning (NeurIPS 2025): memory levels for a trained backbone",
        equation="AdamW; grad W = 0 outside memories after optim.full_steps steps",
        code="nl.optim.frozen_backbone:freeze_after",
        tests=(
            "tests/unit/optim/test_frozen_backbone.py::test_the_backbone_stands_still_after_its_"
            "time_and_the_memory_goes_on_as_adamw",
        ),
        where=_optim("frozen_backbone"),
        options=("optim.lr", "optim.full_steps"),
    ),
    Mechanism(
        part="parameter policy",
        source="Nested Learning (NeurIPS 2025): memory levels for a trained backbone",
        equation="grad W = 0 for every parameter that the policy leaves out",
        code="nl.optim.policy:apply_policy",
        tests=(
            f"{POLICY}test_frozen_parameters_stay_bitwise_and_the_others_move",
            "tests/unit/dist/test_strategies.py::"
            "test_two_ranks_train_the_memories_of_a_frozen_backbone",
        ),
        options=("optim.policy",),
    ),
)

MECHANISMS = BLOCKS + CONTINUUM + EXPERTS + OUTER


def value_at(data: Any, key: str) -> Any:
    """The value under a dotted key of nested mappings; None where there is none."""
    for part in key.split("."):
        data = data.get(part) if isinstance(data, Mapping) else None
    return data


def used_by(data: Mapping[str, Any]) -> list[Mechanism]:
    """The rows that a run uses.

    Args:
        data: its resolved configuration as plain data.
    """
    return [m for m in MECHANISMS if all(_holds(data, k, v) for k, v in m.where.items())]


def _holds(data: Mapping[str, Any], key: str, wanted: tuple[str, ...]) -> bool:
    found = value_at(data, key)
    if wanted == POSITIVE:
        return isinstance(found, int | float) and found > 0
    return any(v in wanted for v in (found if isinstance(found, (list, tuple)) else (found,)))
