"""Who asks for what: the burst calendar, traffic fitted to public logs, anybody's own log."""
