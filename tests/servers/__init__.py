"""Real servers for tests: found or built by the Makefile, started here on loopback."""
