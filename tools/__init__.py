"""Programs for those who work on Xenolith: they check, compare and write the generated documents."""
