"""From raw text to batches: tokenizers, shards, orders and streams. Floor 1."""
