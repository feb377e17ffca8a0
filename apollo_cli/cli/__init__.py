"""The command line: what may be typed, what is wrong with it, and how a command ends."""
