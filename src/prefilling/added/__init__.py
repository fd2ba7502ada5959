"""Methods that are added, one file each: the file ``my_method.py`` is found here and is the method ``my-method``.

A file holds ``METHOD``, a ``method.Method``. What its attributes do not say is told by code of its own: ``engine``,
which makes the engine that prefills its batches, or a subclass whose ``batches`` puts prompts together otherwise.
"""
