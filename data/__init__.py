"""Bytes to batches: readers, converters, tokenizers, collators and samplers."""
