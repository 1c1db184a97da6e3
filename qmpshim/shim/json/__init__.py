"""JSON exactly as QEMU's parser takes and refuses it."""
