"""Evaluators: what a trained model can do, as rows with errors and chance. Floor 6."""
