"""What every room stands on: the one error class, whole-or-not files, progress lines."""
