"""A batch of prompts in, its KV cache and first tokens out."""
