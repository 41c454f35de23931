"""One self-contained HTML page of checks, for people."""
