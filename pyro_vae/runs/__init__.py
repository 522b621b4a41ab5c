"""What a run leaves on disk, and how a model is rebuilt from it."""
