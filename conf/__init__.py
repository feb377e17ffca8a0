"""The YAML groups that Hydra composes; values only."""
