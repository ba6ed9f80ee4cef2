"""Accounts for every event of the log: what became of it, and whether the indices say the same."""
