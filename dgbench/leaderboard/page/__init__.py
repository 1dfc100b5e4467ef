"""The leaderboard as a static page: opens from disk, asks nothing of any server, and shows text from run folders as text."""
