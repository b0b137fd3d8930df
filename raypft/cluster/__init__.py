"""Clusters: one typed definition, what is rendered from it, and the commands that submit to, check and run one."""
