"""Controllers: what turns knobs between steps. Floor 6."""
