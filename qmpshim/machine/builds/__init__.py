"""QEMU builds: where they are found or fetched, what they can do, their QMP schema."""
