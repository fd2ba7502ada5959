"""Runs configurations: in processes of their own, as jobs of a cluster, in searches, in order and within a time."""
