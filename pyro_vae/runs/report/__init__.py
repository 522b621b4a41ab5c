"""The report of runs: one page of HTML for a colleague, that needs no network and runs no script."""
