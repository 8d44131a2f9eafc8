"""From records to text: tables, leaderboard, comparisons. Nothing here imports torch."""
