"""Prompts that arrive while a device is busy: who goes into the next batch, what each waits, which rate is too much."""
