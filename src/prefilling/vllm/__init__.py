"""vLLM as a method: ``driver.py`` here, ``worker.py`` as a script of vLLM's own Python."""
