"""Tables and pages that compare runs and sweeps; needs neither torch nor Ray."""
