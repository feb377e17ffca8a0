"""The schema of each config group, and its rules."""
