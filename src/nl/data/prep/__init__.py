"""What runs before training: corpora, tokenizers, shards. Floor 1."""
