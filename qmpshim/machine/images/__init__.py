"""Image contents by independent readers, and QEMU's write log."""
