"""After the embeddings file: fusion, submission and score. Needs no torch."""
