"""The host: processes under a watchdog, private directories, files, locks, a manual event loop."""
