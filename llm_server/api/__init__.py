"""HTTP: bodies in, one `ChatRequest` out, and events of workers turned into wire formats."""
