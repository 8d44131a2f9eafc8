"""Many sweeps, on any number of machines, in one folder: who is there, and who works on which run."""
