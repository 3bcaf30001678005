"""Joining a trust without Python: explain a message, prove a folder with its worked examples, begin a new folder."""
