"""Many at a time: sweeps of runs, and notebooks with parameters."""
