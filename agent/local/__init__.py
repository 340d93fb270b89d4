"""The node's own API on a unix socket, for the operator on the machine."""
