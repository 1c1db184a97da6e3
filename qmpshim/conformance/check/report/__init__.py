"""Results compared between builds, and rendered."""
