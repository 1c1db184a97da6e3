"""qmpshim makes QEMU's live block backup and block replication (COLO) checkable."""

__version__ = "0.1.0"
