"""How a batch becomes a summed loss; the one module a strategy wraps. Floor 3."""
