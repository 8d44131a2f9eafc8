"""The leaderboard as one page for a browser that needs nothing else: no network, no other file."""
