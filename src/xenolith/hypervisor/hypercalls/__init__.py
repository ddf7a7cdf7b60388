"""Handlers of hypercalls, one module for each family; `table` binds them to their numbers."""
