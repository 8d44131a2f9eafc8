"""From a list of runs to records: processes, devices, and the run itself."""
