"""Losses per token of many runs: paired statistics, fits and forms over components. Floor 1."""
