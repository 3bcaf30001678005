"""THE STEPS of one message, one file each, all pure. A whole patient's journey can be tried at a Python prompt.

``understand`` (read, normalise) needs nothing but the message; ``decide`` (identify, advance, route) also what the
store knows. `hub.store.unit_of_work` puts a transaction around them.
"""

JOURNEY = (
    ("read", "hub.journey.read", "bytes → a FHIR tree whose structure is sound"),
    ("normalise", "hub.journey.normalise", "the trust's words → the hub's words"),
    ("identify", "hub.journey.identify", "which person"),
    ("advance", "hub.journey.advance", "which transfer, and what the fact does to it"),
    ("route", "hub.journey.route", "who must be told, where, with what"),
)
"""The steps in the order in which they run."""
