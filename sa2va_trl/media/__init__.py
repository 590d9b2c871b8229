"""Pictures and clips from files."""
