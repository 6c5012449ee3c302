"""The one training loop and what surrounds it. Floor 5."""
