"""A definition as the files that others read.

targets   every file that comes of a kind of definition
launcher  for `ray up` and the fake autoscaler
kuberay   for Kubernetes
"""
