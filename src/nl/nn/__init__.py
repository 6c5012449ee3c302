"""Layers: a config dataclass and a module each, State in and State out. Floor 2."""
