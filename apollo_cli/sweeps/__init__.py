"""Hydra's runs and sweeps: what a command does before, between and after its jobs."""
