"""What ends a run before its last step, or keeps others out."""
