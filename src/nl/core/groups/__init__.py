"""Finite groups: tables, irreducible representations, what gradient flow learns first. Floor 0."""

from nl.core.groups.finite import FiniteGroup, group_of, parse_group
from nl.core.groups.flow import Dormant, Escape, Steps, simulate
from nl.core.groups.irreps import Decomposition, Irrep, decompose, irreps
from nl.core.groups.plateaus import Plateau, plateaus, reached
from nl.core.groups.staircase import Step, growth_rate, staircase, utility

__all__ = [
    "Decomposition",
    "Dormant",
    "Escape",
    "FiniteGroup",
    "Irrep",
    "Plateau",
    "Step",
    "Steps",
    "decompose",
    "group_of",
    "growth_rate",
    "irreps",
    "parse_group",
    "plateaus",
    "reached",
    "simulate",
    "staircase",
    "utility",
]
