"""Batches to losses: the encoder, its heads, the objectives and the metrics."""
