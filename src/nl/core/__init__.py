"""The records and protocols that parts hand to each other. Floor 0."""
