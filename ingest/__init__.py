"""The ingestion service: exchanges' streams in, candles, funding and prices out, durably."""
