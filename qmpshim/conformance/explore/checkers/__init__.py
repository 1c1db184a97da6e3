"""What an execution on a real QEMU is checked for, one checker a module."""
