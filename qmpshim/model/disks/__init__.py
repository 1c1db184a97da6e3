"""Symbolic disks, and QEMU's ways to copy old data before new data arrives."""
