"""The QMP shim: a QMP endpoint in front of a real QEMU that also answers for the model."""
