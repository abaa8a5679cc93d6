"""Pretraining objectives: a head, its loss and its configuration."""
