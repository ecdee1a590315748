"""The readers over HTTP, for programs that aren't Python, and a status page for people."""
