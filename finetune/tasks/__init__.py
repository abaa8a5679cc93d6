"""One readable file per finetuning task."""
