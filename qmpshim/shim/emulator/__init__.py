"""The QEMU behind the shim: started, attached to, or stood in for."""
