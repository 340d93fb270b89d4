"""The agent in a container: beside the runtimes, and around them."""
