"""What can be wrong with cluster files, and whether a job fits a cluster."""
