"""A check's run: cases in processes of their own or on a cluster, and the journal."""
