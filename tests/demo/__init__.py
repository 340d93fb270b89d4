"""The demo: the main job on real processes, from the dispatch to the report, with what can go wrong on the way."""
