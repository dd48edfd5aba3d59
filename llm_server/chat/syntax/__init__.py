"""How a model writes tool calls and reasoning: measured from its template, parsed and forced."""
