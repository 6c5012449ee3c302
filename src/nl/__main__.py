"""``python -m nl`` is the ``nl`` command. Floor 8."""

from nl.cli import command

if __name__ == "__main__":
    command()
