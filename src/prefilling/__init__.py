"""A batch of prompts in, its KV cache and first tokens out: packing, methods, engines and models."""
