"""A cluster of one machine, and sweeps on it: real Slurm, of Debian's slurm-wlm and munge."""
