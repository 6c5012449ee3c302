"""Pure tensor functions; every fast path stands beside its naive ``_reference`` twin. Floor 1."""
