"""National codes: what a local code means. Code systems and maps are data (``schemas/codesystems``, ``schemas/conceptmaps``)."""
