"""The hub's nouns: plain values and the rules that need nothing but values.

Nothing here reads a clock, a socket, a file or a random number; what is needed is handed in.
"""
