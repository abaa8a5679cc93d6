"""Search over embeddings. Needs no torch."""
