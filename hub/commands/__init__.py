"""What the commands of `hub` do: a file for each heading of `hub --help`, and one for each larger group. Thin: settings are read, something is called, the answer is printed."""
