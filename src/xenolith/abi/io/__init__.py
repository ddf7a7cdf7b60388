"""Device interfaces of the public ABI: the rings and pages that frontends and backends share."""
