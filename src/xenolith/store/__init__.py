"""xenstore: the tree that domains share, its rules, and the protocol in which they speak of it, without any I/O."""
