"""A node in memory and on a real disk: the real journal, link and lanes; a simulated clock, runtimes and Supervisor."""
