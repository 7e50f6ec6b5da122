"""The spaces: a function each, which returns a Sweep. Its docstring says what is asked, and what to expect."""
