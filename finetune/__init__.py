"""Finetuning on labelled pairs, and embedding with what came out."""
