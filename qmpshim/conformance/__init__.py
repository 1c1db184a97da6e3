"""The model held against the machine: workloads, comparison, shrinking, bundles."""
