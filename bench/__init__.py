"""The harness: planning, execution, records, report, command line."""
