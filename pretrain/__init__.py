"""Pretraining on unlabelled videos."""
