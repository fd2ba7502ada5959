"""How long, how much memory, how busy: measured on verified methods, and recorded."""
