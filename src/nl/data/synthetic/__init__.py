"""Batches made from rules, no files. Floor 1."""
