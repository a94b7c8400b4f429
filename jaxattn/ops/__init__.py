"""What PyTorch computes differently, and every choice that depends on the platform."""
