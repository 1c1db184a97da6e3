"""Point-in-time backups of a real QEMU against the model, driven at random."""
