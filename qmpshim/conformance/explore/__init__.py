"""Every interleaving: of the model, and of a real QEMU behind gated storage."""
