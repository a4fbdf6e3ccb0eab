"""What a run found, for machines (results.json), for the terminal and for people (index.html)."""
