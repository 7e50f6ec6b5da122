"""Clusters: check one, submit runs to it, and plan what fits into the memory of its GPUs."""
