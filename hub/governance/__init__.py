"""What people ask of the book: one transfer's story, in words. Pure."""
