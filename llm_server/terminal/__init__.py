"""Chatting in a terminal: a client of the server's own API, and nothing the API cannot do."""
