"""What happens between optimizer steps: measure, validate, save, stop. Floor 5."""
