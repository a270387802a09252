"""Doors into other people's programs; each module says what it needs to be installed."""
