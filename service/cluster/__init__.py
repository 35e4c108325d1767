"""Many replicas of the server on a Ray cluster, by Ray Serve. Ray is a package of its own: extra ``ray``."""
