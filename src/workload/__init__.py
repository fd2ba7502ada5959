"""What is served: prompts as token ids, and the batches they come in."""
