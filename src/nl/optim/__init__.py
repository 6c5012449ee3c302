"""Outer optimizers and learning-rate schedules. Floor 1."""
