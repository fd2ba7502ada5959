"""The sections of the report: for each experiment a file of its name."""
