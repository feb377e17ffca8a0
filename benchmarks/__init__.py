"""Speed and reproduction: what takes too long for a test."""
