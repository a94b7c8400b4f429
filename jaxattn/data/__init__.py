"""Examples and their order, and the augmentations that run on the device."""
