"""A definition as the files that `ray up` and KubeRay read."""
