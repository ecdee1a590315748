"""A local server that speaks the exchanges' protocols, on a market whose truth can be asked."""
