"""What the service and its readers agree on: pairs, schema, Redis keys, settings, errors.

Nothing in here opens a socket or a database; the one file that is read is the configuration.
"""
