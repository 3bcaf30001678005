"""Groups of commands that are large enough for a file of their own; `hub.cli` puts them together."""
