"""Where a run runs: this process or Ray's workers; what is watched and reported there."""
