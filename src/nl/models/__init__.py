"""Networks: parts composed, nothing trained, nothing loaded. Floor 3."""
