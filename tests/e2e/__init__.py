"""The whole path on real processes: Supervisor, agent and runtimes, as the demo and the end-to-end tests start them."""
