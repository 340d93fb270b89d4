"""What acts on the node: drivers, the readiness probe, staged configs."""
