"""Where Ray runs: definitions of clusters, what is rendered from them, jobs that are submitted to them."""
