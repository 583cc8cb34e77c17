"""The search for a better recipe: keras_tuner's oracles ask, a process a trial answers."""
