"""The commands of `llm-server`, one module a group; heavy imports wait until a command runs."""
