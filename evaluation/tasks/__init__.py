"""The tasks of an evaluation, one file each: `answer(spec, subject)` gives rows and the metrics over them."""
