"""Tracking of a run: metrics.jsonl, the console, Weights & Biases."""
