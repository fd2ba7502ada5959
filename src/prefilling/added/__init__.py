"""Methods that are added, one file each, found by their being here; ``my_method.py`` is the method ``my-method``.

A file holds ``METHOD``, a ``methods.Method``. What its attributes do not say is told by code of its own: ``engine``,
which makes what carries a batch, or a subclass whose ``batches`` puts prompts together otherwise.
"""
