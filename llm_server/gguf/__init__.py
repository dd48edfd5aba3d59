"""The GGUF file format: headers, tensor types, and how a model is split into files."""
