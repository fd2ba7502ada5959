"""Records of several machines or versions against those of a reference."""
