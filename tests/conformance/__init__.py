"""What the agent relies on of Iggy's two programs, proven on the stand-ins and, with `--run-real`, on real binaries."""
