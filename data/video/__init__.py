"""Pictures and videos: read their frames, turn frames into feature vectors."""
