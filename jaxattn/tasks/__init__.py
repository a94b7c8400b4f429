"""What is learnt: losses, figures and predictions of each task."""
