"""One folder a Kubeflow component: a thin face over one stage function, and its README. No science inside."""
