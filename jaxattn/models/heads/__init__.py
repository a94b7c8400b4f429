"""What turns a network's maps into the outputs of a task, one file a task."""
