"""What a loader looks for in a folder: which layouts, and how config.json tells of them; one module
a container."""
