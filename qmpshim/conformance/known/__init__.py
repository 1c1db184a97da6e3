"""Known defects: the write-ups, and what each of them explains."""
