"""Second readers, which share no code with the writers, and where two readings differ."""
