"""How often each printed standard error covers what it is an error of: 200 repetitions against closed forms."""
