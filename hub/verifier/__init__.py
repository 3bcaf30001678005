"""Checks an export of the log with nothing but a public key."""
