"""The book: what is written down about everything the hub does. Pure."""
