"""The real thing: QEMU builds and processes, disk chains, images and storage."""
