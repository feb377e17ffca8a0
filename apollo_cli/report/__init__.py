"""What finished runs say: sweeps, comparisons, pictures."""
