"""Where rows end up: the stores (SQLite, InfluxDB) and the hot cache (Redis)."""
