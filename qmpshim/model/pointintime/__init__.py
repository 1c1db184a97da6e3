"""Point in time: disks, dirty bitmaps and backup jobs, and what each may hold."""
