"""llama.cpp's low-level C API, wrapped: the only folder that imports llama_cpp.

Each file wraps one noun (model, vocab, context, batch, sampler, log) and adds no policy.
"""
