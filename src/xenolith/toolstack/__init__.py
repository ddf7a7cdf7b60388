"""The life of a machine and its domains as a user sees it."""
