"""What must be true: the reference model of block backup and replication. No I/O, no clock."""
