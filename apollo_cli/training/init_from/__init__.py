"""Weights that a new model begins with, taken from a smaller one."""
