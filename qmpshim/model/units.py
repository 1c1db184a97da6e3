"""Units of measure: the one place where they have numbers."""

#: Bytes of a sector, the unit of the model and of QEMU's block layer in 2.8.
SECTOR = 512
