"""Requests as questions to the index."""
