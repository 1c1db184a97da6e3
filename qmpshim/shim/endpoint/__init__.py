"""The QMP endpoint: listeners, clients, sessions, and the connection to QEMU."""
