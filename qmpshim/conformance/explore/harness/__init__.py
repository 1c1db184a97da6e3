"""A real QEMU as a system that can be explored."""
