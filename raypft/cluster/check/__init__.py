"""What can be wrong, found before money is spent.

validate   a file: the rules of definitions, the schema of manifests, the security of what starts clusters
preflight  a job: whether it fits a definition, whether the running cluster answers and a worker can store (probe)
"""
