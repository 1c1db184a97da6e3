"""The secondary's chain on a real QEMU: plain, and with all its storage gated."""
