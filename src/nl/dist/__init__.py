"""Strategies (where an objective lives) and checkpoints (how it survives). Floor 4."""
