"""Records into CSV, tables and plots."""
