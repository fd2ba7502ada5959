"""Attention in which each prompt sees itself alone, by one of several kernels, each a file of its own.

Tokens of all rows stand in one flat line, and a *segment* is a span of it that attends causally within itself: a
prompt, or a padded row. ``spans.py`` says what a kernel is given and what it gives, ``kernels.py`` which there are.
"""
