"""Every metric, defined once: its value, its exact chance level, its direction, and how it moves when clusters do."""
