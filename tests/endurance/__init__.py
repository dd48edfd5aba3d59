"""Long runs against a real server: many requests of all kinds, and disasters under load."""
