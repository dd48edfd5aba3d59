"""The border between the API process and the worker process of one model."""
