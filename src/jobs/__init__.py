"""What runs configurations: processes of their own, jobs of a cluster, searches, and the order of all that."""
