"""Sweeps: cells that go on, beside each other or one after the other, and the sweeps that are shipped."""
