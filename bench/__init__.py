"""The harness: suites, plan, executor, records, leaderboard, command line."""
