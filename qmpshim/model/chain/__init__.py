"""The secondary's and the primary's chain of disks, and how they serialize requests."""
